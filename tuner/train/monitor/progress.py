"""What a person sees while training: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from tuner.progress import drawing

LINE_EVERY = 15.0
BAR = 8
"""columns of the bar, at least"""


def time_left(seconds: float) -> str:
    """How long something will take, in words.

    >>> time_left(42), time_left(600), time_left(9000)
    ('42 s', '10 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def step_parts(row: dict[str, Any]) -> list[str]:
    """The numbers of a step that a person looks at, what matters most first.

    >>> step_parts({"loss": 1.25, "lr": 2e-4, "tokens_per_second": 700.4, "mfu": 0.413, "memory": 5 * 2**30})
    ['loss 1.2500', '700 tokens/s', 'lr 2.00e-04', 'mfu 41 %', '5.0 GiB']
    """
    parts = [f"loss {row['loss']:.4f}", f"{row['tokens_per_second']:.0f} tokens/s", f"lr {row['lr']:.2e}"]
    if "mfu" in row:
        parts.append(f"mfu {row['mfu']:.0%}".replace("%", " %"))
    if "memory" in row:
        parts.append(f"{row['memory'] / 2**30:.1f} GiB")
    return parts


def that_fit(parts: Sequence[str], room: int) -> str:
    """The first of some parts, as many as stand in so many columns, two spaces between them.

    >>> that_fit(["loss 1.25", "3 s left", "5.0 GiB"], 20)
    'loss 1.25  3 s left'
    """
    while parts and len(text := "  ".join(parts)) > room:
        parts = parts[:-1]
    return text if parts else ""


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
        self._aside = ExitStack()

    def __enter__(self) -> "Progress":
        if self.shown and sys.stderr.isatty():
            self._aside.enter_context(drawing())
            # the counter stays where the terminal is narrow; the bar shrinks, and what is said of a step
            columns = (
                TextColumn("train", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=BAR)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), expand=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=self.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._aside.close()

    def show(self, row: dict[str, Any]) -> None:
        """One finished step."""
        if not self.shown:
            return
        now, step = time.monotonic(), row["step"]
        loss, *more = step_parts(row)
        if step == self.steps:
            pass
        elif self._first is None:
            self._first = now
        else:
            more = [self._left(now, step), *more]
        if self._bar:
            taken = len(f"train  {self.steps}/{self.steps}  ") + BAR
            text = that_fit([loss, *more], self._bar.console.width - taken)
            self._bar.update(self._task, completed=step, description=text)
        elif step in (self.start + 1, self.steps) or now - self._said >= LINE_EVERY:
            self._said = now
            self.say("  ".join([f"step {step}/{self.steps}", loss, *more]))

    def _left(self, now: float, step: int) -> str:
        assert self._first is not None
        return f"{time_left((now - self._first) / (step - self.start - 1) * (self.steps - step))} left"
