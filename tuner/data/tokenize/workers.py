"""Worker processes that make documents: jobs in, in order; what was made out, in the same order, whatever
number of processes.

Each is a Python of its own with a pipe on either side, and not one of multiprocessing's: those import the
person's own script again, and can outlive a parent that was killed. Here the pipe ends with the parent, and
the worker with the pipe.
"""

import os
import pickle
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.job import Job, TokenizedRows, TokenizeSettings
from tuner.errors import StageError
from tuner.hardware import limits
from tuner.hardware.mistakes import mistake
from tuner.hardware.parent import end_with_parent

AHEAD = 2
"""jobs that wait for each worker, so that none waits for a job"""


def tokenize_jobs(settings: TokenizeSettings, jobs: Iterable[Job], workers: int) -> Iterator[TokenizedRows]:
    """What is made of each job, in their order. Jobs are taken only a few ahead of what was given out.

    Raises what `DocumentMaker` raises, and StageError when a worker died.
    """
    if workers <= 1:
        maker = DocumentMaker(settings)
        yield from map(maker.make, jobs)
        return
    started = [_Worker(settings, number) for number in range(1, workers + 1)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in started:
        idle.put(worker)

    def work(job: Job) -> TokenizedRows:
        worker = idle.get()
        try:
            return worker.make(job)
        finally:
            idle.put(worker)

    waiting: deque[Future[TokenizedRows]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            DocumentMaker(settings)  # what is wrong with the tokenizer or the template is said here, and once
            for job in jobs:
                waiting.append(threads.submit(work, job))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for worker in started:
                worker.stop()
            for worker in started:
                worker.wait()


class _Worker:
    """One process, and the two ends of its pipes. By its number, from 1, whoever watches knows it."""

    def __init__(self, settings: TokenizeSettings, number: int) -> None:
        self._number = number
        # one thread each: the processes are as many as the cores
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        path = os.pathsep.join(part for part in sys.path if part)
        command = [sys.executable, "-c", "from tuner.data.tokenize.workers import serve; serve()"]
        # a session of its own, so that Ctrl-C reaches the parent only, which decides
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONPATH": path, **limits.environment_of(number)},
            pass_fds=limits.descriptors(),
            start_new_session=True,
        )
        _send(self._stdin, (os.getpid(), settings))

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def make(self, job: Job) -> TokenizedRows:
        """Let the process make it."""
        assert self._process.stdout is not None
        try:
            _send(self._stdin, job)
            answer = _receive(self._process.stdout)
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            if why := limits.why_ended(self._number, code):
                raise why from None
            raise StageError(
                "A process that tokenizes ended early "
                f"({f'signal {-code}' if code < 0 else f'exit code {code}'}), perhaps because memory ran "
                "out. Run the command again, with machine.workers=1 if it happens once more."
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        made: TokenizedRows = answer
        return made

    def stop(self) -> None:
        """Ask it to end, whatever it does."""
        self._process.terminate()

    def wait(self) -> None:
        """Until it has ended; closes the pipes."""
        with suppress(BrokenPipeError), self._process:  # what it was still to be sent
            pass


def _send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    data = pipe.read(struct.unpack("<Q", head)[0])
    return pickle.loads(data)  # from our own process, which has it from us


def serve() -> None:
    """The other end: settings once, then a job at a time, until the pipe ends."""
    pipe, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    try:
        parent, settings = _receive(pipe)
        end_with_parent(parent, signal.SIGKILL)  # also in the middle of a row that has no end
        maker = DocumentMaker(settings)
        while True:
            job = _receive(pipe)
            try:
                answer: Any = maker.make(job)
            except Exception as error:
                if (answer := mistake(error)) is None:
                    raise
            _send(answers, answer)
    except (EOFError, BrokenPipeError):
        return
