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


def left(seconds: float) -> str:
    """How long something will take, in words.

    >>> left(42), left(600), left(9000)
    ('42 s', '10 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Shows rows of metrics as they come. The time that is left counts only steps of this process."""

    def __init__(self, *, start: int, steps: int, say: Callable[[str], None]) -> None:
        self.start, self.steps, self.say = start, steps, say
        self._began = self._said = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=self.start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """One finished step."""
        now, step = time.monotonic(), row["step"]
        remaining = (now - self._began) / (step - self.start) * (self.steps - step)
        text = f"loss {row['loss']:.4f}  {row['tokens_per_second']:.0f} tokens/s  {left(remaining)} left"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif step in (self.start + 1, self.steps) or now - self._said >= LINE_EVERY:
            self._said = now
            self.say(f"step {step}/{self.steps}  {text}")
