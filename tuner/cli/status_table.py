"""Every run under the root: how far it is, and the disk that it takes."""

import json
from collections.abc import Sequence
from typing import Any

from tuner.api.overview import read_overview
from tuner.config.schema import Config
from tuner.pipeline.advice import command
from tuner.report.columns import columns
from tuner.report.printable import printable

HEADER = ("run", "stages", "loss", "held-out before → after", "disk", "own", "tags", "note")
NUMBERS = {"loss", "disk", "own"}
"""columns with their text on the right"""


def show_status(config: Config, *, as_json: bool, every: bool) -> int:
    """Print a row for each run, newest last, and what the store holds. Runs that came to nothing, as where
    their input failed, are only counted, if not `every` one is asked for.
    """
    overview = read_overview(config)
    if as_json:
        print(json.dumps(overview, ensure_ascii=False, indent=1))
        return 0
    rows = overview["runs"]
    shown = [row for row in rows if row["started"] or every]
    if shown:
        print("\n".join(_table([_cells(row) for row in shown])))
    if not rows:
        print(f"no runs under {config.root}; start one with: {command(root=config.root, store=config.store)}")
    if count := len(rows) - len(shown):
        print(
            f"{count} not started: nothing was made of their input. "
            f"{command('status', '--all', root=config.root)} lists them, and "
            f"{command('clean', '--not-started', root=config.root)} removes them"
        )
    for found in overview["stores"]:
        print(_line(found))
    return 0


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
    right = {place for place, i in enumerate(kept) if HEADER[i] in NUMBERS}
    return columns([[row[i] for i in kept] for row in [HEADER, *rows]], right)
