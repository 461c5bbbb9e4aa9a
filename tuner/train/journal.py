"""How a training went: one line of metrics.jsonl a step, and the same curves for TensorBoard."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CURVES = ("loss", "lr", "grad_norm", "tokens_per_second", "held_out")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.jsonl, up to the first that a killed process left half written."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Journal:
    """Open while training; rows of steps that will be done again are cut off on opening."""

    def __init__(self, out: Path, *, step: int, tensorboard: bool, say: Callable[[str], None]) -> None:
        """Go on after `step` steps (0 starts anew)."""
        path = out / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= step]
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.last: dict[str, Any] | None = rows[-1] if rows else None
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = _board(out / "tensorboard", step, say) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        """Add the row of one step."""
        self.last, self.seconds = row, row["seconds"]
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board:
            for name in [name for name in CURVES if name in row]:
                self._board.add_scalar(f"train/{name}", row[name], row["step"])

    def sync(self) -> None:
        """Make sure that the rows outlive the machine; called before a step is saved."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _board(directory: Path, step: int, say: Callable[[str], None]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("TensorBoard is not installed, so its curves are left out: pip install tensorboard")
        return None
    return SummaryWriter(log_dir=str(directory), purge_step=step + 1)
