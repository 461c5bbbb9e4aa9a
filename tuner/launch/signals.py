"""Signals that ask to stop: SIGTERM, and SIGINT of Ctrl-C.

What a handler raises comes up anywhere, also in a library's callback, where it can be lost. So that it was
asked is written down first, and looked at before anything is published and at the end: a stop is never lost.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from tuner.errors import Interrupted

CLEAR_LINE = "\r\x1b[2K"
_asked: list[int] = []
"""the signals that came"""
_hooks: list[Callable[["sys.UnraisableHookArgs"], object]] = []
"""what told of errors that can't be raised, before `listen`"""


def listen() -> None:
    """Let SIGTERM and Ctrl-C raise Interrupted from now on. Ctrl-C stays ignored where it was, as a shell has
    it for what it starts in the background.
    """
    _asked.clear()
    if sys.unraisablehook is not _pass_over:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _pass_over
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _pass_over(found: "sys.UnraisableHookArgs") -> None:
    """A stop that came up where Python can't raise it, as in a weak reference's callback, is no trouble to
    tell of: it is written down.
    """
    if not isinstance(found.exc_value, Interrupted):
        _hooks[-1](found)


def leave(code: int) -> None:
    """All is done: a signal that comes now ends the process, with the code that it ends with anyway."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        os._exit(code)

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, end)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    raise Interrupted(_words())


def refuse_after_stop() -> None:
    """Raise Interrupted where a stop was asked for and something has swallowed it."""
    if _asked:
        raise Interrupted(_words())


def answered() -> None:
    """The stop that was asked for is how the command ends in order."""
    _asked.clear()


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Processes that are started in here never hear of Ctrl-C; this one hears of it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer_stop(stage: str, log: Callable[[str], None]) -> None:
    """Tell who stops a stage what it does now, on the terminal and in the run's log."""
    line = f"  {stage}: finishing the step at hand and saving it; again to stop without saving"
    print(CLEAR_LINE * sys.stderr.isatty() + line, file=sys.stderr, flush=True)  # in place of a bar
    log(line)


def _words() -> str:
    how = "stopped by SIGTERM" if signal.SIGTERM in _asked else "interrupted"
    return f"{how}; run the same command again to continue."


@contextmanager
def count_signals(*, for_another: bool = False) -> Iterator[list[int]]:
    """SIGINT and SIGTERM, as they come. Where this is not the main thread, that one gets them. What is meant
    `for_another` process is no stop of this one, whose end is the other's.
    """
    came: list[int] = []

    def count(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if before[number] is _interrupt and not for_another:
            _asked.append(number)

    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before: dict[int, object] = {number: signal.getsignal(number) for number in heard}
    for number, handler in before.items():
        # a shell that starts a command in the background has it ignore Ctrl-C
        if handler is not signal.SIG_IGN:
            signal.signal(number, count)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
