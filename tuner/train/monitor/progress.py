"""What a person sees while training: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

LINE_EVERY = 15.0


def time_left(seconds: float) -> str:
    """How long something will take, in words.

    >>> time_left(42), time_left(600), time_left(9000)
    ('42 s', '10 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def step_line(row: dict[str, Any]) -> str:
    """The numbers of a step that a person looks at.

    >>> step_line({"loss": 1.25, "lr": 2e-4, "tokens_per_second": 700.4, "mfu": 0.413, "memory": 5 * 2**30})
    'loss 1.2500  lr 2.00e-04  700 tokens/s  mfu 41 %  5.0 GiB'
    """
    parts = [f"loss {row['loss']:.4f}", f"lr {row['lr']:.2e}", f"{row['tokens_per_second']:.0f} tokens/s"]
    if "mfu" in row:
        parts.append(f"mfu {row['mfu']:.0%}".replace("%", " %"))
    if "memory" in row:
        parts.append(f"{row['memory'] / 2**30:.1f} GiB")
    return "  ".join(parts)


class Progress:
    """Shows rows of metrics as they come. The time that is left follows from the steps that this process has
    done, but for its first.

    Nothing is timed there: the first step compiles kernels and warms caches, and may take as long as a
    hundred others.
    """

    def __init__(self, *, start: int, steps: int, say: Callable[[str], None], shown: bool = True) -> None:
        """`shown` is False in processes that say nothing."""
        self.start, self.steps, self.say, self.shown = start, steps, say, shown
        self._said = time.monotonic()
        self._first: float | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if self.shown and sys.stderr.isatty():
            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=self.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """One finished step."""
        if not self.shown:
            return
        now, step = time.monotonic(), row["step"]
        text = step_line(row)
        if step == self.steps:
            pass
        elif self._first is None:
            self._first = now
        else:
            text += f"  {time_left((now - self._first) / (step - self.start - 1) * (self.steps - step))} left"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif step in (self.start + 1, self.steps) or now - self._said >= LINE_EVERY:
            self._said = now
            self.say(f"step {step}/{self.steps}  {text}")
