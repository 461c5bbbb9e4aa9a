"""Progress through a known number of things: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

LINE_EVERY = 15.0


@contextmanager
def bar(what: str, total: int, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """A function that hears how much more was done. `total` may be in any unit; work that is over in a moment says nothing on a plain log."""
    done, said = 0, time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn(f"  {what}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(what, total=total)
            yield lambda more: shown.update(task, advance=more)
        return

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said >= LINE_EVERY:
            said = time.monotonic()
            say(f"{what}: {done / max(total, 1):.0%}")

    yield advance


def track(items: Iterable[T], what: str, total: int, say: Callable[[str], None]) -> Iterator[T]:
    """The items, with a bar that moves as each was used."""
    with bar(what, total, say) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counter(what: str, things: str, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """A function that hears how many more were done, of nobody knows how many."""
    done, said = 0, time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn(f"  {what} {{task.completed:,.0f}} {things}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(what, total=None)
            yield lambda more: shown.update(task, advance=more)
        return

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said >= LINE_EVERY:
            said = time.monotonic()
            say(f"{what}: {done:,} {things}")

    yield advance
