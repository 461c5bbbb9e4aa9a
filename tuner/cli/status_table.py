"""Every run under the root: how far it is, and the disk that it takes."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from tuner.config.schema import Config
from tuner.errors import ConfigError, StoreError, TunerError
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, all_runs, store_of
from tuner.report.printable import printable
from tuner.stages import STAGES
from tuner.store.artifacts import Store
from tuner.store.references import RECENT
from tuner.store.usage import StoreUsage

HEADER = ("run", "stages", "loss", "held-out before → after", "disk", "own", "tags", "note")
NUMBERS = {"loss", "disk", "own"}
"""columns with their text on the right"""


def show_status(config: Config, *, as_json: bool, every: bool) -> int:
    """Print a row for each run, newest last, and what the store holds. Runs that came to nothing, as where
    their input failed, are only counted, if not `every` one is asked for.
    """
    root, store = Path(config.root), store_of(config)
    runs = sorted(all_runs(root), key=RunDirectory.used)
    ledgers: dict[Path, StoreUsage | StoreError] = {}
    for place in [store.root, *(place for run in runs if (place := run.store()))]:
        if place.is_dir() and place.resolve() not in ledgers:
            try:
                ledgers[place.resolve()] = StoreUsage(Store(place), root)
            except StoreError as error:
                ledgers[place.resolve()] = error
    rows = [_row(run, ledgers) for run in runs]
    stores = [_store(place, ledger) for place, ledger in ledgers.items()]
    if as_json:
        here = next(
            (found for found in stores if found["store"] == str(store.root.resolve())),
            _store(store.root.resolve(), None),
        )
        print(json.dumps({"runs": rows, **here, "stores": stores}, ensure_ascii=False, indent=1))
        return 0
    shown = [row for row in rows if row["started"] or every]
    if shown:
        print("\n".join(_table([_cells(row) for row in shown])))
    if not rows:
        print(f"no runs under {config.root}; start one with: python -m tuner")
    if count := len(rows) - len(shown):
        where = "" if config.root == Config().root else f" {shlex.quote(f'root={config.root}')}"
        print(
            f"{count} not started: nothing was made of their input. python -m tuner status --all{where} "
            f"lists them, and python -m tuner clean --not-started{where} removes them"
        )
    for found in stores:
        print(_line(found))
    return 0


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


def _line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"store {found['store']}: {found['error']}"
    total, loose, now, every = (
        found[name] / 1e6 for name in ("store_bytes", "unreferenced_bytes", "clean_bytes", "clean_all_bytes")
    )
    freed = (
        f" (clean frees {now:.1f} MB now, clean --all {every:.1f} MB)" if found["unreferenced_bytes"] else ""
    )
    return f"store {found['store']}: {total:.1f} MB, of which {loose:.1f} MB no run refers to{freed}"


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


def _cells(row: dict[str, Any]) -> list[str]:
    before, after = row["held_out_before"], row["held_out_after"]
    held = f"{_number(before)} → {_number(after)}" if before is not None or after is not None else ""
    state, note = (printable(text) for text in (row["state"], row["note"] or ""))
    sizes = [f"{row[field] / 1e6:.1f} MB" for field in ("bytes", "own_bytes")]
    return [
        row["run"],
        state if len(state) <= 60 else f"{state[:59]}…",
        _number(row["loss"]),
        held,
        *sizes,
        printable(",".join(row["tags"])),
        note,
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns under each other, where a Chinese character takes two places. Columns that
    nobody fills are left out.
    """
    kept = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
    width = {i: max(cell_len(row[i]) for row in [HEADER, *rows]) for i in kept}
    lines = []
    for row in [HEADER, *rows]:
        cells = [(" " * (width[i] - cell_len(row[i])), row[i], HEADER[i] in NUMBERS) for i in kept]
        lines.append(
            "  ".join(f"{gap}{text}" if right else f"{text}{gap}" for gap, text, right in cells).rstrip()
        )
    return lines
