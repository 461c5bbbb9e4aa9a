"""How a run went: one line of metrics.jsonl a step, and the same for trackers.

A row has: step, loss (per target token, in nats), lr, grad_norm (before clipping), tokens and targets (of the
step: targets; so far: tokens), seconds (of all steps so far), tokens_per_second, memory (bytes), where they
are known mfu and held_out.

The seconds of a step are wall time, from the end of the row before to the end of its own: what the step does
not hide of collating, rows and saving is in them, measuring the held-out loss and answering prompts are not.
Those of a process's first step begin with it.
"""

import json
import os
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tuner.config.view import identity_of
from tuner.pipeline.stage import Context
from tuner.train.distributed import World
from tuner.train.monitor.rows import read_rows
from tuner.train.monitor.trackers import Trackers, open_trackers

RECENT = 64
"""rows that stay at hand"""


def device_usage(
    device: torch.device, *, flops: float, seconds: float, peak: float | None, processes: int
) -> dict[str, Any]:
    """What a step took of this process's device, for its row.

    flops      of the whole step, over all processes
    peak       the operations a second that one device can do; None where that is not known, and then there is
               no `mfu`
    memory     on a GPU the most that PyTorch has reserved so far, on the CPU the most that the process
               has had resident; in bytes
    mfu        the share of the peak that went into the model (arXiv:2204.02311, appendix B): what is computed
               again counts once
    """
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident
    shares = {} if peak is None or seconds <= 0 else {"mfu": round(flops / seconds / (peak * processes), 4)}
    if device.type == "cuda":
        shares["allocated"] = torch.cuda.max_memory_allocated(device)
    return shares | {"memory": memory}


class Journal:
    """Open while training; rows of steps that will be done again are cut off on opening. Of several
    processes one writes, and all know the rows.
    """

    def __init__(
        self, out: Path, *, step: int, trackers: Trackers | None = None, writes: bool = True
    ) -> None:
        """Go on after `step` steps (0 starts anew)."""
        path = out / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= step]
        self.seconds: float = rows[-1]["seconds"] if rows else 0.0
        self.last: dict[str, Any] | None = rows[-1] if rows else None
        self.recent: deque[dict[str, Any]] = deque(rows, maxlen=RECENT)
        self.measured: list[tuple[int, float]] = [
            (row["step"], row["held_out"]) for row in rows if "held_out" in row
        ]
        self._trackers, self._file = trackers, None
        if writes:
            partial = path.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Add the row of one step."""
        self.last, self.seconds = row, row["seconds"]
        self.recent.append(row)
        if "held_out" in row:
            self.measured.append((row["step"], row["held_out"]))
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._trackers:
            self._trackers.write(row)

    def text(self, name: str, text: str, step: int) -> None:
        """Give a text to the trackers."""
        if self._trackers:
            self._trackers.text(name, text, step)

    def sync(self) -> None:
        """Make sure that the rows outlive the machine; called before a step is saved."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self, *, failed: bool = False) -> None:
        """`failed` lets trackers show that training did not end as it should."""
        if self._file:
            self._file.close()
        if self._trackers:
            self._trackers.close(failed=failed)


def open_journal(ctx: Context, world: World, *, step: int, say: Callable[[str], None]) -> Journal:
    """The journal of a run that goes on after `step` steps; the first process writes it and tells the
    trackers.
    """
    config, out, trackers = ctx.config, ctx.out, None
    if world.first:
        trackers = open_trackers(
            config.machine.trackers,
            out,
            place=ctx.run or out,
            project=config.machine.project,
            name=out.name.removesuffix(".partial"),
            config=identity_of(config),
            step=step,
            say=say,
        )
    return Journal(out, step=step, trackers=trackers, writes=world.first)
