"""A job of a sweep in the process that a launcher of Hydra's gives it, here or on another machine.

Whoever launched it may be gone before it ends: what it says goes into a log under the sweep, what becomes of
it into a note beside that, and while it runs it holds a lock in the store, which says where.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tuner.config.schema import Config
from tuner.errors import Interrupted, StoreError, TunerError
from tuner.hardware.gpus import VISIBLE_DEVICES
from tuner.launch import signals
from tuner.pipeline.run import store_of
from tuner.pipeline.sweeps import SweepDirectory, SweepJob
from tuner.store.artifacts import Store

End = tuple[int, str]
"""what became of a job: the exit code, and what went wrong"""


@dataclass(frozen=True, kw_only=True)
class LaunchedJob:
    """A job, ready to travel."""

    sweep: SweepDirectory
    note: SweepJob
    config: Config
    work: Callable[[], End]
    """runs it"""
    shows_gpus: bool
    """whether the launcher leaves all GPUs of a machine visible, though it says otherwise"""
    home: str = field(default_factory=lambda: str(Path.cwd()))
    """the working directory of the command"""
    visible: str | None = field(default_factory=lambda: os.environ.get(VISIBLE_DEVICES))
    """the GPUs that it sees"""
    parent: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))
    """the process of the command"""

    @property
    def lock(self) -> str:
        """The key under which the job holds a lock while it runs."""
        return f"job-{self.sweep.digest}-{(self.note.run or '').rpartition('-')[2]}"

    @property
    def store(self) -> Store:
        return store_of(self.config)

    def __call__(self) -> End | None:
        """Run it; None where another process runs it already."""
        if (socket.gethostname(), os.getpid()) == self.parent:  # a launcher that starts none
            return self.work()
        try:
            return self._begin()
        except OSError as error:
            where = f"{socket.gethostname()}: {error.strerror} ({error.filename})"
            return (
                StoreError.exit_code,
                f"The job can't begin on {where}. Every machine needs the same paths.",
            )
        except TunerError as error:
            return error.exit_code, str(error)

    def _begin(self) -> End | None:
        os.chdir(self.home)
        if self.shows_gpus:
            _set_visible_gpus(self.visible)
        with _told_to(self.sweep.log(self.note)), _Queue() as queue:
            self.store.open()
            with self.store.lock_unless(self.lock, lambda _holder: None, lambda: True) as held:
                return self._run(queue) if held is not None else None

    def _run(self, queue: "_Queue") -> End:
        if self.sweep.stopping:
            return self._end(Interrupted.exit_code, "the sweep was stopped before it began")
        try:
            return self._end(*self.work())
        except (Interrupted, KeyboardInterrupt) as stop:
            print(f"tuner: {stop or 'interrupted'}", file=sys.stderr, flush=True)
            if queue.warned:
                queue.put_back()
                return self._end(Interrupted.exit_code, "its time is over; what is done is saved")
            return self._end(Interrupted.exit_code, str(stop) or "interrupted")

    def _end(self, code: int, message: str) -> End:
        self.sweep.note_end(self.note, code, message)
        return code, message


def _set_visible_gpus(visible: str | None) -> None:
    if visible is None:
        os.environ.pop(VISIBLE_DEVICES, None)
    else:
        os.environ[VISIBLE_DEVICES] = visible


@contextmanager
def _told_to(log: Path) -> Iterator[None]:
    """Let what this process and its children say go into a file; a launcher may use the process again."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        before = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        _flush()
        for descriptor in before:
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            _flush()
            for descriptor, old in before.items():
                os.dup2(old, descriptor)
                os.close(old)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class _Queue:
    """SIGTERM stops the job as it stops a command; so does the signal with which a queue warns that the time
    is over, or that the machine is wanted. submitit chooses that one by a variable.
    """

    def __init__(self) -> None:
        self.warned = False
        self._number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', '')}", signal.SIGUSR2)
        self._before: object = None

    def __enter__(self) -> "_Queue":
        if threading.current_thread() is threading.main_thread():
            signals.listen()
            self._before = signal.signal(self._number, self._warn)
        return self

    def _warn(self, _number: int, _frame: FrameType | None) -> None:
        self.warned = True
        os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(self._number, signal.SIG_IGN)  # one that comes as it ends

    def put_back(self) -> None:
        """What submitit does when it is warned: the job is queued again, which ends this process, or there is
        no time left for it, which is said.
        """
        if callable(self._before):
            try:
                self._before(self._number, None)
            except Exception as error:
                print(f"tuner: {error}", file=sys.stderr, flush=True)
