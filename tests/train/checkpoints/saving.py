"""Processes that save steps, for tests that kill them. One Python imports everything once and forks them, as
told by lines of JSON.

Each of the steps `begin` … `end` is two matrices and two moments full of the step's own number, which
training, so to speak, changes at once after `save`. Of two processes each holds half of each tensor. What a
process came to lies in the file `said`.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

SHAPE = (48, 1024)
SCALAR = "a/step"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does."""

    out: str
    begin: int
    end: int
    said: str
    rank: int = 0
    of: int = 1
    timeout: float = 20.0
    keep: int = 2
    kill_at: tuple[str, str, int] | None = None
    """SIGKILL to itself before what this audit event announces, when it names a path that matches, for the
    so many-th time
    """
    largest: int | None = None
    """bytes that a file may have from the second step on, as on a full disk"""


def main() -> None:
    from tuner.train.checkpoints import save as checkpoint  # noqa: F401 (so that the children needn't)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            words = json.loads(line)
            work(Job(**words))
            os._exit(0)
        print(child, flush=True)


def work(job: Job) -> None:
    import torch

    from tuner.train.checkpoints import removal
    from tuner.train.checkpoints import save as checkpoint

    torch.set_num_threads(1)
    if job.kill_at:
        arm(*job.kill_at)
    out, said = Path(job.out), "ok"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    names = ("a", "b")
    half = torch.empty(SHAPE).numel() // job.of
    tensors = {
        name: torch.empty(SHAPE) if job.of == 1 else torch.empty(half)
        for name in (*names, *(f"{n}/exp_avg" for n in names))
    }
    shapes = {} if job.of == 1 else dict.fromkeys(tensors, SHAPE)
    steps_done = {SCALAR: torch.empty(())} if job.rank == 0 else {}

    def state(wanted: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {name if job.of == 1 else f"{name}@{job.rank * half}": tensors[name] for name in wanted}

    def fill(value: float) -> None:
        for tensor in (*tensors.values(), *steps_done.values()):
            tensor.fill_(value)

    prune = lambda: removal.prune(out, keep=job.keep, by="loss", pinned=1, resumable=2)  # noqa: E731
    try:
        started = out.with_name(f"started-{job.begin}")
        # in a training, a collective lies between the first one's start and any save
        while job.rank and not started.exists():
            time.sleep(0.002)
        with checkpoint.Saver(out, rank=job.rank, of=job.of, timeout=job.timeout, prune=prune) as saver:
            started.touch()
            for step in range(job.begin, job.end + 1):
                saver.poll()
                fill(step)
                now = checkpoint.State(
                    weights=state(names),
                    optimizer=state(tuple(f"{n}/exp_avg" for n in names)) | steps_done,
                    shapes=shapes,
                )
                saver.save(now, step=step, tokens=step, scores={"loss": 1.0 / step}, optimizer=True)
                fill(-step)
                if job.largest:
                    saver.wait()
                    resource.setrlimit(resource.RLIMIT_FSIZE, (job.largest, unlimited))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    Path(job.said).write_text(said, encoding="utf-8")


def arm(event: str, pattern: str, count: int) -> None:
    wanted, left = re.compile(pattern), [count]

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == event and any(
            isinstance(arg, str | os.PathLike) and wanted.search(os.fspath(arg)) for arg in args
        ):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Processes:
    """Starts them, from the test."""

    def __init__(self, environment: dict[str, str]) -> None:
        words = [sys.executable, "-m", "tests.train.checkpoints.saving"]
        pipe = subprocess.PIPE
        self._parent = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
        )
        assert self._answer() == "ready"

    def start(self, job: Job) -> int:
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(asdict(job)) + "\n")
        self._parent.stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._parent.pid, signal.SIGKILL)  # with all that still run
        self._parent.communicate()


def ended(pid: int, seconds: float = 30) -> None:
    """Wait until the process is gone."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} runs on"
        time.sleep(0.005)


if __name__ == "__main__":
    main()
