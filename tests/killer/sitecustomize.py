"""Kills the process it is imported into, at a point that a test names. Python imports it at start when this
directory is on the path.

KILL_AT=EVENT|PATTERN|SECONDS: SIGKILL to itself, SECONDS after the audit event EVENT (`open`, `os.rename`, …)
first names a path that matches PATTERN; 0 is at once, before what the event announces happens. The product
knows nothing of this.
"""

import os
import re
import signal
import sys
import threading


def _arm(event: str, pattern: str, seconds: float) -> None:
    wanted = re.compile(pattern)
    armed = True

    def hook(name: str, args: tuple[object, ...]) -> None:
        nonlocal armed
        if (
            not armed
            or name != event
            or not any(isinstance(arg, str | os.PathLike) and wanted.search(os.fspath(arg)) for arg in args)
        ):
            return
        armed = False
        if seconds:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if point := os.environ.get("KILL_AT"):
    _event, _pattern, _seconds = point.split("|")
    _arm(_event, _pattern, float(_seconds))
