"""A server of others as a process beside this one: started, waited for, and ended with this command."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tuner.errors import ConfigError, StageError
from tuner.launch.signals import without_ctrl_c

GRACE = 15.0
"""seconds that it has to end once it was asked to"""
SHOWN = 12
"""lines of its output that are shown where it fails"""


def free_port(host: str, wish: int) -> int:
    """The port of `host` that is wished for, or any for 0. Raises ConfigError where somebody has it."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, wish))
        except OSError as error:
            raise ConfigError(
                f"Port {wish} of {host} can't be had ({error.strerror}). Name another one with "
                "serve.port=…; serve.port=0 takes a free one."
            ) from error
        found: int = tried.getsockname()[1]
        return found


@contextmanager
def running(command: Sequence[str], log: Path, directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The server, while entered, in a working directory; its output goes to `log`. Afterwards neither it nor
    what it started is there.
    """
    # in a session of its own: Ctrl-C is for this process, which then ends it in order
    with log.open("wb") as out, without_ctrl_c():
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str, log: Path, *, seconds: float) -> None:
    """Return when `url` answers. Raises StageError where the server ends before, or takes too long."""
    end = time.monotonic() + seconds
    while True:
        if process.poll() is not None:
            raise StageError(f"The server ended with code {process.returncode}. {told(log)}")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2):
            return
        if time.monotonic() > end:
            raise StageError(f"The server has not answered for {seconds:.0f} s (serve.timeout). {told(log)}")
        time.sleep(0.2)


def told(log: Path) -> str:
    """The last lines of a server's output, and where all of it is."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"Its output is in {log}, and ends with:", *lines[-SHOWN:]])
