"""The other side of `tuner.hardware.limits`: looks at what the processes of a stage read, and ends them when
one record of it takes too much.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from tuner.config.schema import Machine
from tuner.errors import DataError
from tuner.hardware import limits
from tuner.hardware.limits import Board, Reading
from tuner.hardware.parent import end_with_parent
from tuner.launch.signals import count_signals, listen

EVERY = 0.1
"""seconds between two looks"""
END_IN_ORDER = 1.0
"""seconds that Ctrl-C of a terminal, which reaches both processes, may take to end the watched one"""


@dataclass(kw_only=True, slots=True)
class _Since:
    """Where a process was when it began with the record at hand."""

    record: int
    memory: int
    cpu: float


@dataclass
class Watch:
    """Limits on what a process, and those that it starts, may take for one record."""

    machine: Machine
    board: Board = field(default_factory=Board.new)
    _seen: dict[int, _Since] = field(default_factory=dict)
    _looked: float = 0.0

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process that is watched must find in its environment, and inherit the board's
        descriptor.
        """
        return {
            limits.WATCHED: f"{self.board.descriptor}:0",
            limits.ROW_LIMIT: f"{self.machine.row_limit:g}",
        }

    def look(self) -> DataError | None:
        """Why the processes have to end now; None where all is well."""
        if (now := time.monotonic()) - self._looked < EVERY:
            return None
        self._looked = now
        for place in self.board.taken():
            found = self.board.look(place)
            if found is None:
                self._seen.pop(place, None)
                continue
            if (why := self._judge(place, found)) is not None:
                return why
        return None

    def _judge(self, place: int, found: Reading) -> DataError | None:
        memory, cpu = limits.memory_of(found.process), limits.cpu_seconds(found.process)
        if memory is None or cpu is None:
            return None  # no /proc here, or it has ended
        since = self._seen.get(place)
        if since is None or since.record != found.record:
            self._seen[place] = _Since(record=found.record, memory=memory, cpu=cpu)
            return None
        if memory - since.memory > self.machine.parse_memory * (1 << 30):
            return _refused(
                found.what, f"takes more than {self.machine.parse_memory:g} GiB of memory", "parse_memory"
            )
        if cpu - since.cpu > self.machine.parse_timeout:
            return _refused(
                found.what,
                f"takes more than {self.machine.parse_timeout:g} s of CPU time",
                "parse_timeout",
            )
        return None

    def end(self, child: int) -> None:
        """Kill `child` and all that are watched."""
        readers = [found.process for place in self.board.taken() if (found := self.board.look(place))]
        for process in (child, *readers):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _refused(what: str, why: str, name: str) -> DataError:
    return DataError(
        f"{what}: one record of it {why}. It is damaged, or was made to do that: get it again, or leave it "
        f"out. If it is meant so, raise machine.{name}."
    )


def supervise(work: Callable[[], int], machine: Machine) -> int:
    """The exit code of `work`, which a fork of this process does under limits; it must raise nothing but
    SystemExit. Raises DataError where the limits are passed, and Interrupted as the caller's signals do.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with Watch(machine) as watch, count_signals(for_another=True) as signals:
        parent = os.getpid()
        with warnings.catch_warnings():
            # of threads that a library keeps: the fork imports what it computes with itself
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            os.environ |= watch.environment
            _do(work, watch.board, parent)
        return _await(child, watch, signals)


def _do(work: Callable[[], int], board: Board, parent: int) -> NoReturn:
    code = 1
    try:
        end_with_parent(parent, signal.SIGKILL)
        listen()
        limits.watch_self(board)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)


def _await(child: int, watch: Watch, signals: list[int]) -> int:
    passed_on = 0
    pressed: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if why := watch.look():
            watch.end(child)
            os.waitpid(child, 0)
            raise why
        if len(signals) > passed_on:
            number, passed_on = signals[passed_on], passed_on + 1
            if number == signal.SIGTERM:
                os.kill(child, number)
            else:
                pressed = time.monotonic()
        # a terminal sends Ctrl-C to both, and what reads from it decides itself what that means
        if pressed is not None and time.monotonic() - pressed > END_IN_ORDER and not sys.stdin.isatty():
            os.kill(child, signal.SIGINT)
            pressed = None
        time.sleep(EVERY / 5)
    code = os.waitstatus_to_exitcode(status)
    if why := limits.why_ended(0, code, watch.board):
        raise why
    return code if code >= 0 else 128 - code
