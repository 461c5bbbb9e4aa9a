"""Real processes: what they make is what this process makes, and none stays when its parent goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import environment
from tuner.config.schema import Chat
from tuner.data.files.row_files import Chunk
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize.job import Job, SourceSettings, TokenizeSettings
from tuner.data.tokenize.workers import tokenize_jobs
from tuner.errors import DataError, StageError


@pytest.fixture
def settings(tiny_model: Path, chatml: Chat) -> TokenizeSettings:
    source = SourceSettings(shape=RowShape(), fill={}, system=None)
    return TokenizeSettings(
        model=tiny_model,
        chat=chatml,
        sources=(source,),
        length=64,
        overlong="auto",
        loss="assistant",
        reasoning="last",
    )


def job(number: int) -> Job:
    rows = [{"prompt": f"{number} and {i}?", "completion": f"{number + i}"} for i in range(20)]
    return Job(source=0, rows=Chunk(first=1, values=rows))


def test_made_things_come_in_the_order_of_the_jobs(settings: TokenizeSettings) -> None:
    alone, apart = (
        [made.ids.tolist() for made in tokenize_jobs(settings, map(job, range(30)), workers)]
        for workers in (1, 3)
    )
    assert alone == apart
    assert len({tuple(ids) for ids in alone}) == 30


def test_jobs_are_not_taken_far_ahead(settings: TokenizeSettings) -> None:
    taken = []

    def jobs() -> object:
        for number in range(40):
            taken.append(number)
            yield job(number)

    made = tokenize_jobs(settings, jobs(), 2)  # type: ignore[arg-type]
    next(made)
    assert len(taken) < 10
    made.close()  # type: ignore[attr-defined]


def test_a_template_that_does_not_fit_is_said_once(settings: TokenizeSettings) -> None:
    from dataclasses import replace

    broken = replace(
        settings, chat=replace(settings.chat, special=("<|im_start|>", "<|im_end|>", "<|nowhere|>"))
    )
    with pytest.raises(DataError, match="nowhere"):
        next(tokenize_jobs(broken, [job(0)], 2))


def children(of: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(of)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


def test_a_worker_that_is_killed_is_named(settings: TokenizeSettings) -> None:
    def jobs() -> object:
        for number in range(40):
            if number == 8:
                for pid in children(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
            yield job(number)

    with pytest.raises(StageError, match=r"ended early \(signal 9\).*machine\.workers=1"):
        list(tokenize_jobs(settings, jobs(), 2))  # type: ignore[arg-type]


def test_no_worker_outlives_a_killed_parent(settings: TokenizeSettings, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    code = (
        "import pickle, pathlib, time; from tuner.data.tokenize.workers import tokenize_jobs; from "
        "tests.data.tokenize.test_workers import job\nfor made in "
        f"tokenize_jobs(pickle.loads(pathlib.Path({str(tmp_path / 'settings')!r}).read_bytes()), map(job, "
        "range(10**6)), 2):\n    print('made', flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"made\n"
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.stdout.close()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
        for pid in workers
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
