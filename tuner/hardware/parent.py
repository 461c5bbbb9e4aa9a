"""A process that ends with the one that started it."""

import ctypes
import os
import signal
import sys

from tuner.errors import Interrupted

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Get a signal when the parent dies, even of SIGKILL; on Linux only. With SIGTERM a training run saves
    and ends, anything else just ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before we could ask
        raise SystemExit(Interrupted.exit_code)
