"""A training inside an allocation of the real Slurm: two nodes, which are namespaces of this machine
(`tests/launch/machines.py`), and its daemons.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from tests.conftest import REPO
from tests.launch.machines import SLURM, Cluster, cluster, machines, missing, until
from tests.launch.test_faults import ENV, adapter
from tests.launch.test_faults import straight as straight  # its fixture
from tests.launch.test_hosts import APART, steps

pytestmark = pytest.mark.skipif(bool(missing(*SLURM)), reason=missing(*SLURM) or "all is there")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Cluster]:
    with machines(tmp_path / "machines") as pair:
        yield cluster(pair, tmp_path / "machines")
        assert not [pid for host in pair for pid in host.ranks()], "a rank was left"


def scene(directory: Path, played: dict[str, Any]) -> list[str]:
    """A training without a model."""
    (directory / "out").mkdir()
    return [
        sys.executable,
        "-m",
        "tests.launch.ranked",
        str(directory / "out"),
        "1",
        json.dumps({"timeout": 60, **played}),
        "slurm",
    ]


def test_two_nodes_train_together(slurm: Cluster, tmp_path: Path) -> None:
    """By salloc, in which the command runs on the first node, and srun starts the processes of the second."""
    started = slurm.start(["salloc", "-Q", "-N2", *scene(tmp_path, {})], REPO, tmp_path / "said", ENV)
    assert started.wait(60) == 0, started.told()
    assert "Done: [0.1, 0.2] over eth0" in started.told()


@pytest.mark.slow
def test_a_process_that_dies_on_another_node_is_named(slurm: Cluster, tmp_path: Path) -> None:
    words = ["salloc", "-Q", "-N2", *scene(tmp_path, {"rank": 1, "step": 1, "act": "kill"})]
    started = slurm.start(words, REPO, tmp_path / "said", ENV)
    assert started.wait(60) == 1, started.told()
    assert "Rank 1 of 2 on second of train was killed (SIGKILL)" in started.told()


@pytest.mark.parametrize(
    "asked",
    [
        ["--gres=gpu:2"],
        ["--gpus-per-node=2"],
        ["--gpus-per-task=1", "--ntasks-per-node=2"],
        ["--gpus=4", "--ntasks-per-node=2", "--cpus-per-task=2"],
        ["--gpus-per-socket=2", "--sockets-per-node=1", "--mem-per-cpu=100"],
    ],
)
def test_a_node_gives_all_the_gpus_that_the_job_has_there(
    asked: list[str], slurm: Cluster, tmp_path: Path
) -> None:
    """However the job asked for them: srun would give one task the share of one task, or look for all of
    the job's on one node.
    """
    (tmp_path / "step").write_text(
        f"import os, subprocess, sys; sys.path.insert(0, {str(REPO)!r}); from tuner.launch.remote import "
        "remote_command\nwords = remote_command('second', 'slurm', os.environ, gpus=2)\n"
        "sys.exit(subprocess.run([*words[: words.index('--kill-on-bad-exit=1')], "
        "*(w for w in words if w.startswith('--gpus')), "
        "'env']).returncode)\n",
        encoding="utf-8",
    )
    started = slurm.start(
        ["salloc", "-Q", "-N2", *asked, sys.executable, str(tmp_path / "step")], REPO, tmp_path / "said"
    )
    assert started.wait(60) == 0, started.told()
    assert "SLURMD_NODENAME=second\n" in started.told()
    assert re.search(r"^CUDA_VISIBLE_DEVICES=0,1$", started.told(), re.MULTILINE), started.told()


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["all", "one"])
def test_a_job_that_is_cancelled_saves_the_step_at_hand(batch: str, slurm: Cluster, tmp_path: Path) -> None:
    """scancel's SIGTERM reaches all processes of the job, srun and what it has started included. A step of
    five seconds is not lost to it.

    Nor to the signals with which a job may ask to be warned before its time is over.
    """
    script = tmp_path / "job"
    words = scene(tmp_path, {"steps": 10**6, "pause": 5.0})
    script.write_text(f"#!/bin/bash\ncd {REPO}\nexec {' '.join(map(quote, words))}\n", encoding="utf-8")
    number = slurm.submit(script, tmp_path / "said", ENV)
    until(60, lambda: (tmp_path / "out" / "step").exists(), "it does not step")
    for warning in ("USR1", "USR2"):
        slurm.run("scancel", f"--signal={warning}", number)
    time.sleep(6.0)
    slurm.run("scancel", *(["--signal=TERM", "--batch"] if batch == "one" else []), number)
    until(30, lambda: not slurm.run("squeue", "-h"), "the job does not end")
    assert re.search(
        r"^Interrupted: stopped after step \d+", (tmp_path / "said").read_text(encoding="utf-8"), re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_goes_on_after_scancel_and_gives_the_bits_of_one_machine(
    slurm: Cluster, tiny: list[str], tmp_path: Path, straight: bytes
) -> None:
    """The command stands in a script for sbatch, which is submitted again."""
    root, script, said = tmp_path / "root", tmp_path / "job", tmp_path / "said"
    words = [sys.executable, "-m", "tuner", f"root={root}", *tiny, *APART]
    script.write_text(f"#!/bin/bash\nexec {' '.join(map(quote, words))}\n", encoding="utf-8")
    number = slurm.submit(script, said, ENV)
    until(120, lambda: steps(root) >= 5, "it does not step")
    slurm.run("scancel", number)
    until(30, lambda: not slurm.run("squeue", "-h"), "the job does not end")
    told = said.read_text(encoding="utf-8")
    assert re.search(r"Training was stopped after step \d+ of 40, which is saved", told), told
    slurm.submit(script, said, ENV)
    until(120, lambda: not slurm.run("squeue", "-h"), "the job does not end")
    told = said.read_text(encoding="utf-8")
    assert re.search(r"continuing after step \d+ of 40", told), told
    assert adapter(root) == straight
