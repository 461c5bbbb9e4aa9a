"""A wish to stop after the step at hand: SIGTERM, or a file that `tuner stop` puts into the training
directory.

A file reaches a run on another machine, of another user or without a parent; a signal does not.
"""

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOP_FILE = ".stop"
"""left over, it goes with the other hidden files when the training is published"""


class Stop:
    """While entered, SIGTERM only counts as a wish; before, nothing is lost by ending at once. The file
    counts from the beginning.

    However often it comes: one Ctrl-C or `scancel` may reach us twice, from the terminal or the scheduler and
    from the parent. Who can't wait for the step sends SIGKILL, and loses what came after the last checkpoint.
    """

    def __init__(self, out: Path) -> None:
        self._file = out / STOP_FILE
        self._file.unlink(missing_ok=True)  # of a run that ended before it looked
        self._signalled = False
        self._before: Any = None

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def requested(self) -> bool:
        return self._signalled or self.by_hand

    @property
    def by_hand(self) -> bool:
        """Whether `tuner stop` asked."""
        return self._file.exists()

    def answered(self) -> None:
        """The run has saved and ends."""
        self._file.unlink(missing_ok=True)
