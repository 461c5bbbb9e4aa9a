"""How far answering is: rows, and tokens a second."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.progress import LINE_EVERY, drawing, quiet


class Pace:
    """Rows and tokens so far."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.rows, self.tokens = total, done, 0
        self._began = time.monotonic()

    def __str__(self) -> str:
        spent = time.monotonic() - self._began
        pace = f", {self.tokens / spent:,.0f} tokens/s" if self.tokens and spent > 0 else ""
        return f"{self.rows:,} of {self.total:,} rows{pace}"


@contextmanager
def answer_bar(what: str, total: int, done: int, say: Callable[[str], None]) -> Iterator[Callable[..., None]]:
    """A function that hears of rows= and tokens= that came about, of `total` rows of which `done` were there;
    a bar on a terminal, a line now and then elsewhere.
    """
    pace, said = Pace(total, done), time.monotonic()
    if quiet() or not sys.stderr.isatty():

        def hear(*, rows: int = 0, tokens: int = 0) -> None:
            nonlocal said
            pace.rows, pace.tokens = pace.rows + rows, pace.tokens + tokens
            if not quiet() and time.monotonic() - said >= LINE_EVERY:
                said = time.monotonic()
                say(f"{what}: {pace}")

        yield hear
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"  {what}"),
        BarColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with drawing(), bar:
        task = bar.add_task("", total=total, completed=done, pace=str(pace))

        def move(*, rows: int = 0, tokens: int = 0) -> None:
            pace.rows, pace.tokens = pace.rows + rows, pace.tokens + tokens
            bar.update(task, advance=rows, pace=str(pace))

        yield move
