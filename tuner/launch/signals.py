"""Signals that ask a launcher to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def count_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, as they come. Where this is not the main thread, that one gets them."""
    came: list[int] = []

    def count(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in heard}
    for number, handler in before.items():
        # a shell that starts a command in the background has it ignore Ctrl-C
        if handler is not signal.SIG_IGN:
            signal.signal(number, count)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
