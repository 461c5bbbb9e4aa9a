"""A job of a sweep that travels: what it needs goes with it, what it says and what became of it is found at
home. The launchers themselves: tests/test_launchers.py.
"""

import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import environment
from tuner.api import prepare
from tuner.cli.launched_job import LaunchedJob
from tuner.cli.sweep import run_job
from tuner.hardware.gpus import VISIBLE_DEVICES
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.sweeps import SweepDirectory, SweepJob

ARRIVE = """
import os, pickle, sys
job = pickle.loads(open(sys.argv[1], "rb").read())
print(job(), os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchedJob:
    """One whose data are gone by the time that it begins."""
    monkeypatch.chdir(tmp_path)
    config = prepare(["data=local", "data.path=gone.jsonl", "model=local", "model.path=m"])
    return LaunchedJob(
        sweep=SweepDirectory(Path("outputs/sweeps/lr-87654321")),
        note=SweepJob(run=RunDirectory.of(config).dir.name),
        config=config,
        work=partial(run_job, config, "job 1 of 2", to_do=True),
        shows_gpus=True,
        visible="GPU-a",
    )


def arrive(job: LaunchedJob, tmp_path: Path) -> str:
    """What a process elsewhere prints that runs the job."""
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    words = [sys.executable, "-c", ARRIVE, str(tmp_path / "job")]
    done = subprocess.run(
        words, cwd="/", env=environment({VISIBLE_DEVICES: ""}), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_a_job_that_travels_fails_at_home(job: LaunchedJob, tmp_path: Path) -> None:
    said = arrive(job, tmp_path)
    assert said.startswith("(2, ")
    assert said.endswith("GPU-a\n")
    end = job.sweep.end(job.note)
    assert end
    assert end[0] == 2
    assert "gone.jsonl" in end[1]
    assert job.sweep.log(job.note).read_text(encoding="utf-8").splitlines() == [
        "── job 1 of 2",
        f"tuner: {end[1]}",
        "── job 1 of 2: failed",
    ]


def test_a_job_does_not_run_twice_nor_after_a_stop(job: LaunchedJob, tmp_path: Path) -> None:
    job.store.open()
    with job.store.lock_at_once(job.lock):
        assert arrive(job, tmp_path).startswith("None ")
    assert job.sweep.end(job.note) is None
    job.sweep.ask_to_stop()
    assert arrive(job, tmp_path).startswith("(75, 'the sweep was stopped before it began')")


def test_a_machine_without_the_directory_is_named(job: LaunchedJob, tmp_path: Path) -> None:
    elsewhere = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert re.match(
        rf"\(2, \"The job can't begin on \S+: No such file.* \({tmp_path}\)", arrive(job, elsewhere)
    )
