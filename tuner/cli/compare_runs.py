"""What differs between runs, their scores, curves and answers, in the terminal and as a page.
It builds nothing.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError, StoreError
from tuner.files import read_json, write_text
from tuner.pipeline.find_run import differing_fields
from tuner.pipeline.run import RunDirectory
from tuner.report.comparison import ComparedRun, DifferingField, compare_runs
from tuner.stages import STAGES
from tuner.store.artifacts import Store
from tuner.train.monitor.rows import read_rows

MOST = 20
"""runs that can still be read side by side"""


def compare(runs: Sequence[RunDirectory], root: Path, *, as_json: bool) -> int:
    """Print how the runs compare, and write the page under `root`; with `as_json` only print, for machines.

    A run may be unfinished: what it has not got is left out. Raises ConfigError for runs that can't be
    compared, StoreError when the page can't be written, after everything else was printed.
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
    comparison = compare_runs([compared_run(run) for run in runs], differing)
    if as_json:
        print(json.dumps(comparison, ensure_ascii=False, indent=1))
        return 0
    from tuner.report.comparison_page import to_html
    from tuner.report.comparison_text import to_text

    print(to_text(comparison, shutil.get_terminal_size().columns, colour=sys.stdout.isatty()))
    page = root / "compare" / f"{'-'.join(run.digest for run in runs)}.html"
    try:
        # a name on the disk may hold no text
        write_text(page, to_html(comparison).encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise StoreError(
            f"The page {page} can't be written: {error.strerror}. Make space, mend its permissions, or "
            "choose another root=DIR."
        ) from error
    print(f"\npage    {page}")
    return 0


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
