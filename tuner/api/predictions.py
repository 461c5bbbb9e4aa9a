"""A file of rows answered by a finished run: what is to be done is decided here, and done in a process of its
own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.schema import Config, Predict
from tuner.data.files.write_rows import check_ending
from tuner.errors import ConfigError
from tuner.launch.child import launch
from tuner.pipeline.gpus import gpus_to_see
from tuner.pipeline.rerun import overridden, prepare_result
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.weights import locate_weights
from tuner.stages import STAGES

READING = ("format", "columns", "roles", "encoding", "paths", "fill", "bad_rows")
"""fields of `data` that say how the rows of the file are read, in place of those of training"""


def predict_file(
    run: RunDirectory,
    rows: Path,
    out: Path,
    words: Sequence[str],
    tell: Callable[[str], None],
    *,
    base: bool = False,
    logprobs: bool = False,
    extra: Path | None = None,
) -> dict[str, Any]:
    """Answer each of `rows` with the model of a run, into the file `out`, whole or not at all; returns how
    many there were. What a command that was killed has answered is not answered again.

    words      overrides: of generation, predict and machine, and of `data` those that say how the rows
               are read
    base       the model that was trained on answers too
    logprobs   with the log-probabilities of each answer's tokens
    Raises TunerError.
    """
    _check_places(rows, out)
    reading = [word for word in words if _field(word).startswith("data.")]
    for word in reading:
        if _field(word).split(".")[1] not in READING:
            raise ConfigError(
                f"{_field(word)} says nothing of how rows are read. Of data, predict takes "
                f"{', '.join(f'data.{name}' for name in READING)}."
            )
    others = [word for word in words if word not in reading]
    result, config, trained_on = prepare_result(run, others, tell, STAGES, extra)
    _check_endpoint(config.predict, base)
    config = _for_rows(config, reading, extra)
    gpus = None if config.predict.endpoint else gpus_to_see(config.machine)
    found = locate_weights(result, trained_on, quant=config.algo.quant if gpus else "none")
    if base and (trained_on is None or not trained_on.is_dir()):
        raise ConfigError(f"--base asks the model that {result.dir.name} was trained on, and it is gone.")
    files = {
        "rows": rows,
        "model": found.base,
        "adapter": found.adapter,
        "base": trained_on if base else None,
    }
    request = {
        "dir": str(found.home.absolute()),
        "files": {name: str(path.absolute()) for name, path in files.items() if path is not None},
        "facts": {
            "kept": found.quant != "none",
            "content": found.content,
            "told": any(not _field(word).endswith((".bad_rows", ".encoding")) for word in reading),
            "logprobs": logprobs,
        },
    }
    return launch(
        "predict",
        config,
        {"request": request},
        out,
        result.dir,
        locks=[],
        gpus=gpus,
        log=result.log,
    )


def _field(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _check_places(rows: Path, out: Path) -> None:
    check_ending(out)
    if not rows.is_file():
        raise ConfigError(
            f"{rows} is {'a directory' if rows.is_dir() else 'not there'}; a file of rows is needed."
        )
    if out.exists():
        raise ConfigError(
            f"{out} already exists, and nothing is overwritten. Name another file, or remove it."
        )
    if not out.parent.is_dir():
        raise ConfigError(f"There is no directory {out.parent} to write {out.name} into.")


def _check_endpoint(asked: Predict, base: bool) -> None:
    if asked.endpoint is None:
        if asked.model is not None:
            raise ConfigError(
                "predict.model is what a server calls its model: add predict.endpoint=http://…/v1"
            )
        return
    if not asked.endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"predict.endpoint={asked.endpoint} is no address, such as http://127.0.0.1:8000/v1."
        )
    if base:
        raise ConfigError("An endpoint has one model: --base goes without predict.endpoint.")


def _for_rows(config: Config, reading: Sequence[str], extra: Path | None) -> Config:
    """The config, with `data` as the rows of the file are read: as those of training where there was one
    source of them, unless the words say otherwise.
    """
    data = replace(config.data, split="all", take=None)
    if data.parts:  # whose rows they are like, nobody knows
        data = replace(data, parts=(), of={}, format="auto", columns={}, roles={}, fill={})
    if any(_field(word) == "data.format" for word in reading):  # the columns were those of another format
        data = replace(data, columns={}, roles={})
    config = replace(config, data=data)
    return overridden(config, reading, extra) if reading else config
