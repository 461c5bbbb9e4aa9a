"""Every run under a root: how far it is, its losses, and the disk that it takes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.errors import ConfigError, StoreError, TunerError
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, all_runs, store_of
from tuner.stages import STAGES
from tuner.store.artifacts import Store
from tuner.store.references import RECENT
from tuner.store.usage import StoreUsage


def read_overview(config: Config) -> dict[str, Any]:
    """A row for each run, newest last, and what the stores hold that they use, as JSON can hold it."""
    root, store = Path(config.root), store_of(config)
    runs = sorted(all_runs(root), key=RunDirectory.used)
    ledgers: dict[Path, StoreUsage | StoreError] = {}
    for place in [store.root, *(place for run in runs if (place := run.store()))]:
        if place.is_dir() and place.resolve() not in ledgers:
            try:
                ledgers[place.resolve()] = StoreUsage(Store(place), root)
            except StoreError as error:
                ledgers[place.resolve()] = error
    stores = [_store(place, ledger) for place, ledger in ledgers.items()]
    here = next(
        (found for found in stores if found["store"] == str(store.root.resolve())),
        _store(store.root.resolve(), None),
    )
    return {"runs": [_row(run, ledgers) for run in runs], **here, "stores": stores}


def _store(place: Path, ledger: StoreUsage | StoreError | None) -> dict[str, Any]:
    """What a store holds, in bytes. `clean_bytes` and `clean_all_bytes` are what `clean` and `clean --all`
    would free for this user.
    """
    if not isinstance(ledger, StoreUsage):
        known = (
            {"store_bytes": 0, "unreferenced_bytes": 0, "clean_bytes": 0, "clean_all_bytes": 0}
            if ledger is None
            else {}
        )
        return {"store": str(place), **known, **({"error": str(ledger)} if ledger else {})}
    ours = [item for item in ledger.leftovers if not item.owner]
    return {
        "store": str(place),
        "store_bytes": ledger.total,
        "unreferenced_bytes": ledger.free(ledger.leftovers),
        "clean_bytes": ledger.free([item for item in ours if item.age >= RECENT]),
        "clean_all_bytes": ledger.free(ours),
    }


def _row(run: RunDirectory, ledgers: dict[Path, StoreUsage | StoreError]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run": run.dir.name,
        "name": run.name,
        "digest": run.digest,
        "tags": [],
        "note": None,
        "state": "",
        "step": None,
    }
    row |= {
        "loss": None,
        "held_out_before": None,
        "held_out_after": None,
        "bytes": 0,
        "own_bytes": 0,
        "changed": run.used(),
        "started": run.begun,
    }
    place = run.store()
    if place and isinstance(ledger := ledgers.get(place.resolve()), StoreUsage):
        row |= {"bytes": ledger.of(run.dir), "own_bytes": ledger.own(run.dir)}
    try:
        config = load_config(run)
    except ConfigError as error:  # an older version's field, an edited file: the run is still shown
        return {**row, "state": f"config unreadable: {error}"}
    store = store_of(config)
    linked = {
        stage.name: artifact for stage in STAGES if (artifact := store.find(run.key(stage.name) or "-"))
    }
    row |= {
        "tags": list(config.tags),
        "note": config.note,
        "stages": {stage.name: "done" if stage.name in linked else "" for stage in STAGES},
    }
    if "train" in linked:
        row["loss"] = linked["train"].manifest["facts"].get("loss")
    for name, field in (("baseline", "held_out_before"), ("evaluate", "held_out_after")):
        if name in linked:
            row[field] = linked[name].manifest["facts"].get("loss")
    return row | _where(config, run, store, trained="train" in linked)


REACHED = {"evaluate": "done", "merge": "merged", "convert": "converted", "train": "trained"}
"""a run of which this was made last is called so"""


def _where(config: Config, run: RunDirectory, store: Store, *, trained: bool) -> dict[str, Any]:
    """How far a run is. What is trained counts, whatever became of the files since; the files of an
    unfinished one may be gone.
    """
    try:
        steps = {step.stage.name: step for step in plan(config, STAGES, store, run, pinned=trained)}
    except (TunerError, OSError) as error:
        return {"state": f"{error}"}
    running = next((step for step in steps.values() if step.state == "wait"), None)
    if running and running.stage.name == "train" and (last := _last_row(store, running)):
        return {"state": f"train running @step {last['step']}", "step": last["step"], "loss": last["loss"]}
    if running:
        return {"state": f"{running.stage.name} running", "started": True}
    if broken := next((step for step in steps.values() if step.replaces), None):
        return {"state": f"{broken.stage.name} {broken.why}"}
    if trained:
        return {"state": next(word for name, word in REACHED.items() if steps[name].state == "done")}
    waiting = next((step for step in steps.values() if step.to_do), None)
    if waiting is None:
        return {"state": "done"}
    return {
        "state": f"{waiting.stage.name} stopped {waiting.why}"
        if waiting.state == "continue"
        else f"next: {waiting.stage.name}"
    }


def _last_row(store: Store, step: PlannedStage) -> dict[str, Any] | None:
    """The last whole line of metrics.jsonl of a run that is training; in a shared store whoever trains it."""
    for journal in (store.root / ".partial").glob(f"{step.key}*/metrics.jsonl"):
        with suppress(OSError, ValueError, IndexError), journal.open("rb") as file:
            file.seek(max(0, journal.stat().st_size - 8192))
            row: dict[str, Any] = json.loads(file.read().split(b"\n")[-2])
            return row
    return None
