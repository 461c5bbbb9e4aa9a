"""Progress through things, of a known number or not: a bar on a terminal, a line now and then elsewhere. And
how much a command says at all.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

LINE_EVERY = 15.0
VERBOSITY = "TUNER_VERBOSITY"
"""the variable by which a command tells the processes of its stages how much to say: `quiet` or `verbose`"""


def quiet() -> bool:
    """Whether only errors and results are shown (`-q`)."""
    return os.environ.get(VERBOSITY) == "quiet"


def verbose() -> bool:
    """Whether all that goes into the log is shown, and where an error comes from (`-v`)."""
    return os.environ.get(VERBOSITY) == "verbose"


@contextmanager
def progress_bar(what: str, total: int, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """A function that hears how much more was done. `total` may be in any unit; work that is over in a
    moment says nothing on a plain log.
    """

    def columns() -> tuple[Any, ...]:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

        return TextColumn(f"  {what}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()

    with _shown(columns, total, lambda done: say(f"{what}: {done / max(total, 1):.0%}")) as advance:
        yield advance


@contextmanager
def progress_counter(what: str, things: str, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """A function that hears how many more were done, of nobody knows how many."""

    def columns() -> tuple[Any, ...]:
        from rich.progress import TextColumn, TimeElapsedColumn

        return TextColumn(f"  {what} {{task.completed:,.0f}} {things}"), TimeElapsedColumn()

    with _shown(columns, None, lambda done: say(f"{what}: {done:,} {things}")) as advance:
        yield advance


@contextmanager
def _shown(
    columns: Callable[[], tuple[Any, ...]], total: int | None, tell: Callable[[int], None]
) -> Iterator[Callable[[int], None]]:
    """On a terminal the columns of rich, which is imported for them alone; elsewhere what is done so far
    is told now and then. A quiet command shows neither.
    """
    if quiet():
        yield lambda _: None
        return
    done, said = 0, time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(*columns(), console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task("", total=total)
            yield lambda more: shown.update(task, advance=more)
        return

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said >= LINE_EVERY:
            said = time.monotonic()
            tell(done)

    yield advance


def track(items: Iterable[T], what: str, total: int, say: Callable[[str], None]) -> Iterator[T]:
    """The items, with a bar that moves as each was used."""
    with progress_bar(what, total, say) as advance:
        for item in items:
            yield item
            advance(1)
