"""What differs between runs, their scores, curves and answers, from their own files. It builds nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError
from tuner.files import read_json
from tuner.pipeline.find_run import differing_fields
from tuner.pipeline.run import RunDirectory
from tuner.report.comparison import ComparedRun, DifferingField, compare_runs
from tuner.stages import STAGES
from tuner.store.artifacts import Store
from tuner.train.monitor.rows import read_rows

MOST = 20
"""runs that can still be read side by side"""


def read_comparison(runs: Sequence[RunDirectory]) -> dict[str, Any]:
    """How the runs compare, as JSON can hold it. A run may be unfinished: what it has not got is left out.
    Raises ConfigError for runs that can't be compared.
    """
    places = [run.dir.resolve() for run in runs]
    if twice := [run.dir.name for run, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        raise ConfigError(f"{twice[0]} is named twice. compare needs different runs; status lists them.")
    if not 2 <= len(runs) <= MOST:
        raise ConfigError(f"compare shows 2 to {MOST} runs side by side, not {len(runs)}.")
    kinds = {path: declared.kind for path, declared, _ in leaves(Config())}
    differing = [
        DifferingField(field=path, kind=kinds[path], values=values)
        for path, values in differing_fields(list(runs)).items()
    ]
    return compare_runs([compared_run(run) for run in runs], differing)


def compared_run(run: RunDirectory) -> ComparedRun:
    """What there is of a run to compare, as far as it is."""
    config, place, key = run.config(), run.store(), run.key("train") or "-"
    # by the links, for the whole root may have been moved; without any, nothing is found
    store = Store(place or run.dir)
    found = {stage.name: artifact for stage in STAGES if (artifact := store.find(run.key(stage.name) or "-"))}
    trained, converted, tokens, evaluated = (
        found.get(name) for name in ("train", "convert", "tokenize", "evaluate")
    )
    rows = read_rows((trained.path if trained else store.partial(key)) / "metrics.jsonl")
    step = rows[-1]["step"] if rows else 0
    if trained:
        states = []
    elif store.partial(key).is_dir():
        states = [f"training, step {step}" if store.holder(key) else f"stopped at step {step}"]
    else:
        states = ["not trained"]
    reached = (("evaluated", evaluated), ("converted", converted), ("trained", trained))
    states += [word for word, artifact in reached if artifact][:1]
    return ComparedRun(
        run=run.dir.name,
        state=", ".join(states),
        note=config.note,
        tags=config.tags,
        train=trained.manifest["facts"] if trained else _so_far(rows),
        convert=converted.manifest["facts"] if converted else {},
        rows=rows,
        report=read_json(evaluated.path / "report.json") if evaluated else None,
        held_out=tokens.manifest["files"].get("held_out.arrow", {}).get("sha256") if tokens else None,
    )


def _so_far(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of a run that is still training, from its last row."""
    if not rows:
        return {}
    facts = {name: rows[-1][name] for name in ("step", "loss", "tokens", "seconds")}
    return facts | {"tokens_per_second": facts["tokens"] / max(facts["seconds"], 1e-3)}
