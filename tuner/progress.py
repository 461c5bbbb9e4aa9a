"""Progress through things, of a known number or not: a bar on a terminal, a line now and then elsewhere. And
how much a command says at all.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
def progress_bar(
    what: str, total: int, say: Callable[[str], None], *, after: float = 0.0
) -> Iterator[Callable[[int], None]]:
    """A function that hears how much more was done. `total` may be in any unit; work that is over in a
    moment says nothing on a plain log, and draws nothing that is over `after` so many seconds.
    """

    def columns() -> tuple[Any, ...]:
        from rich.progress import (
            BarColumn,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        # in a narrow window the name is cut, and the rest stays
        name = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        return (
            SpinnerColumn(),
            TextColumn(what, table_column=name, markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
        )

    with _shown(columns, total, lambda done: say(f"{what}: {done / max(total, 1):.0%}"), after) as advance:
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
    columns: Callable[[], tuple[Any, ...]],
    total: int | None,
    tell: Callable[[int], None],
    after: float = 0.0,
) -> Iterator[Callable[[int], None]]:
    """On a terminal the columns of rich, which is imported for them alone, once `after` seconds have passed;
    elsewhere what is done so far is told now and then. A quiet command shows neither.
    """
    if quiet():
        yield lambda _: None
        return
    done, said = 0, time.monotonic()
    begins = said + after

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        if time.monotonic() - said >= LINE_EVERY:
            said = time.monotonic()
            tell(done)

    if not sys.stderr.isatty():
        yield advance
        return

    with ExitStack() as drawn:
        move: Callable[[int], None] | None = None

        def draw(more: int) -> None:
            nonlocal done, move
            done += more
            if move is None and time.monotonic() >= begins:
                move = drawn.enter_context(_drawn(columns(), total))
                more = done
            if move is not None:
                move(more)

        draw(0)
        yield draw


@contextmanager
def _drawn(columns: tuple[Any, ...], total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of rich, in place of what `waiting` shows."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
    with drawing(), bar:
        task = bar.add_task("", total=total)
        yield lambda more: bar.update(task, advance=more)


_spinner: "_Spinner | None" = None


class _Spinner:
    """What a process is at while no bar is shown: on a terminal, with the seconds that it takes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown: Any = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        self._show()
        try:
            yield
        finally:
            self._hide()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In here something else is drawn."""
        self._hide()
        try:
            yield
        finally:
            self._show()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        before, self._what = self._what, what
        with self.aside():
            pass
        try:
            yield
        finally:
            self._what = before
            with self.aside():
                pass

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._shown = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
        )
        self._shown.add_task(self._what, total=None)
        self._shown.start()

    def _hide(self) -> None:
        self._shown.stop()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """While entered, a terminal shows that something is going on, wherever no bar does."""
    global _spinner
    if quiet() or not sys.stderr.isatty() or _spinner is not None:
        yield
        return
    _spinner = _Spinner(what)
    try:
        with _spinner.shown():
            yield
    finally:
        _spinner = None


def drawing() -> AbstractContextManager[None]:
    """In here something else than what `waiting` shows is drawn."""
    return _spinner.aside() if _spinner else nullcontext()


@contextmanager
def working(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """While something is done of which nobody knows how far it is; afterwards its time is said, where it took
    a second or more.
    """
    began = time.monotonic()
    with _spinner.doing(what) if _spinner else nullcontext():
        yield
    if (spent := time.monotonic() - began) >= 1:
        say(f"{what}: {spent:.1f} s")


def track(items: Iterable[T], what: str, total: int, say: Callable[[str], None]) -> Iterator[T]:
    """The items, with a bar that moves as each was used."""
    with progress_bar(what, total, say) as advance:
        for item in items:
            yield item
            advance(1)
