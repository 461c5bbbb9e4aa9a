"""SIGTERM as a wish to stop after the step at hand."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Stop:
    """While entered, SIGTERM only sets `requested`.

    However often it comes: one Ctrl-C or `scancel` may reach us twice, from the terminal or the scheduler and from the parent.
    Who can't wait for the step sends SIGKILL, and loses what came after the last checkpoint.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
