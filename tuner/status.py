"""`status`: every run under the root, as far as it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError, TunerError
from tuner.plan import plan
from tuner.runs import Run, all_runs, store_of
from tuner.schema import Config
from tuner.stages import STAGES


def show(config: Config, *, as_json: bool) -> int:
    """Print a row for each run, newest last, and what the store holds."""
    rows = sorted((_row(run) for run in all_runs(Path(config.root))), key=lambda row: row["changed"])
    store = store_of(config)
    disk = sum(artifact.size() for artifact in store.all())
    if as_json:
        print(json.dumps({"runs": rows, "store_bytes": disk}, ensure_ascii=False, indent=1))
        return 0
    if not rows:
        print(f"no runs under {config.root}; start one with: python -m tuner")
        return 0
    print(f"{'run':<44} {'stages':<22} {'loss':>8} {'held-out before → after':>26} {'disk':>10}")
    for row in rows:
        before, after = row["held_out_before"], row["held_out_after"]
        held = f"{_number(before)} → {_number(after)}" if before is not None or after is not None else ""
        print(f"{row['run']:<44} {row['state']:<22} {_number(row['loss']):>8} {held:>26} {row['bytes'] / 1e6:>7.0f} MB  {row['note'] or ''}".rstrip())
    print(f"store {store.root}: {disk / 1e6:.0f} MB")
    return 0


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.dir.name, "state": "", "loss": None, "held_out_before": None, "held_out_after": None, "bytes": 0, "note": None}
    row["changed"] = (run.dir / "log").stat().st_mtime if (run.dir / "log").exists() else 0.0
    try:
        config = run.config()
    except ConfigError as error:  # an older version's field, an edited file: the run is still shown
        return {**row, "state": f"config unreadable: {error}"}
    store = store_of(config)
    linked = {stage.name: artifact for stage in STAGES if (artifact := store.find(run.key(stage.name) or "-"))}
    row["note"] = config.note
    row["bytes"] = sum(artifact.size() for artifact in linked.values())
    row["stages"] = {stage.name: "done" if stage.name in linked else "" for stage in STAGES}
    row["state"] = "done" if len(linked) == len(STAGES) else _where(config, run)
    if "train" in linked:
        row["loss"] = linked["train"].manifest["facts"].get("loss")
    for name, field in (("baseline", "held_out_before"), ("evaluate", "held_out_after")):
        if name in linked:
            row[field] = linked[name].manifest["facts"].get("loss")
    return row


def _where(config: Config, run: Run) -> str:
    """How far an unfinished run is, from the plan; its files may be gone, and then the links are all there is to say."""
    try:
        waiting = [step for step in plan(config, STAGES, store_of(config), run) if step.to_do]
    except (TunerError, OSError) as error:
        return f"{error}"[:60]
    return next(_words(waiting), "done")


def _words(steps: list[Any]) -> Iterator[str]:
    for step in steps:
        yield (
            f"{step.stage.name} running"
            if step.state == "wait"
            else f"{step.stage.name} {step.why}"
            if step.state == "continue"
            else f"next: {step.stage.name}"
        )
