"""Sweeps whose jobs joblib and submitit run, in processes of their own: what is said of each, one that fails,
and what becomes of them when they, or the command, are killed. Minutes; `scripts/test --all`.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

import tuner as python_tuner
from tests.conftest import ROWS, Tuner, environment, write_rows
from tuner.pipeline.gpus import idle_gpus
from tuner.train.monitor.rows import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

JOBLIB = "hydra/launcher=joblib hydra.launcher.n_jobs=2".split()
SUBMITIT = ["hydra/launcher=submitit_local"]


def launcher(words: list[str], module: str) -> object:
    there = find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{module}")
    return pytest.param(
        words,
        marks=pytest.mark.skipif(not there, reason=f"needs {module.replace('_', '-')}"),
        id=words[0][15:],
    )


WITH_JOBLIB = launcher(JOBLIB, "hydra_joblib_launcher")
WITH_SUBMITIT = launcher(SUBMITIT, "hydra_submitit_launcher")


class Sweep:
    """A sweep in a process of its own, and what it has said so far."""

    def __init__(self, directory: Path, words: list[str], python: Sequence[str] = ("-m", "tuner")) -> None:
        self.root, self._said = directory / "outputs", directory / "said"
        with self._said.open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, *python, "-m", *words],
                cwd=directory,
                env=environment(),
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text(encoding="utf-8")

    def until_saved(self, count: int) -> list[int]:
        """Wait until so many jobs have saved a step; returns the processes of all."""
        while True:
            assert self.process.poll() is None, self.said
            steps = self.root.glob("store/.partial/train-*/steps/*[0-9]/state.json")
            if len({file.parts[-4] for file in steps}) >= count:
                return [int(pid) for pid in re.findall(r" on [^:\s]+:(\d+), log ", self.said)]
            time.sleep(0.05)

    def ends(self) -> int:
        return self.process.wait(timeout=600)

    def steps(self) -> list[list[int]]:
        """Those of each run, as its metrics have them."""
        runs = sorted((self.root / "runs").iterdir())
        return [[row["step"] for row in read_rows(run / "train" / "metrics.jsonl")] for run in runs]


def logged(root: Path, pattern: str) -> Counter[str]:
    """What the jobs of a sweep have said, in all."""
    texts = [log.read_text(encoding="utf-8") for log in root.glob("sweeps/*/logs/*.log")]
    return Counter(found for text in texts for found in re.findall(pattern, text, re.MULTILINE))


def running(sign: Path) -> list[str]:
    """The processes whose environment or command line names a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(sign).encode() in words:
                found.append(words.decode(errors="replace")[:200])
    return found


@pytest.mark.parametrize("launcher", [WITH_JOBLIB, WITH_SUBMITIT])
def test_four_jobs_of_which_two_fail(
    launcher: list[str], tiny: list[str], tuner: Tuner, tmp_path: Path
) -> None:
    """With an option of the user's own; the same line again does what is missing, and nothing else."""
    (tmp_path / "own" / "eval").mkdir(parents=True)
    (tmp_path / "own" / "eval" / "mine.yaml").write_text("# none\nprompts: []\n", encoding="utf-8")
    here = tmp_path / "rows.jsonl"
    write_rows(here, ROWS)
    swept = ["seed=1,2", "data.path=rows.jsonl,late.jsonl", "algo.steps=2", "eval.prompts=[]"]
    words = ["-m", "-cd", "own", *tiny, "eval=mine", *swept, *launcher]
    done = tuner(*words, code=2)
    root = tmp_path / "outputs"
    assert logged(root, r"^(\w+) +done in").items() >= {"tokenize": 1, "train": 2, "evaluate": 2}.items()
    assert "2 of 4 jobs done, 2 failed" in done.out
    assert len(re.findall(r"^failed: .*data.path=late.jsonl.*late.jsonl", done.out, re.MULTILINE)) == 2
    assert f"4 jobs queued by {launcher[0].partition('=')[2]}" in done.err
    for number in range(1, 5):
        told = re.findall(rf"^── job {number} of 4: .*(?:seed|path)=\S+: (.*)$", done.err, re.MULTILINE)
        log = re.search(r", log (\S+)$|Its log: (\S+)$", "\n".join(told), re.MULTILINE)
        assert log
        assert (tmp_path / (log[1] or log[2])).is_file()
        assert re.match(r"done in \d+ s, held-out loss \d|failed: .*late.jsonl", told[-1])
        assert ("train" in told) == told[-1].startswith("done")
    assert {path.name for path in root.iterdir()} == {"runs", "store", "sweeps"}
    assert running(tmp_path) == []

    write_rows(tmp_path / "late.jsonl", ROWS[3:])
    again = tuner(*words)
    assert "2 jobs queued" in again.err
    assert logged(root, r"^(\w+) +done in").items() >= {"tokenize": 2, "train": 4, "evaluate": 4}.items()
    assert "sweep of 4 jobs: all done\n" in (last := tuner(*words)).err
    assert "── " not in last.err
    assert last.out == again.out


@pytest.mark.parametrize("launcher", [WITH_JOBLIB, WITH_SUBMITIT])
def test_ctrl_c_saves_the_steps_of_all_jobs(launcher: list[str], tiny: list[str], tmp_path: Path) -> None:
    """Those of a terminal reach the whole group of processes. Three jobs, of which two are at it."""
    words = [*tiny, "algo.steps=300", "seed=1,2,3", "eval=none", "machine.save_every=20", *launcher]
    stopped = Sweep(tmp_path, words)
    stopped.until_saved(2)
    os.killpg(stopped.process.pid, signal.SIGINT)
    assert stopped.ends() == 75
    saved = re.findall(r"Training was stopped after step (\d+) of 300, which is saved", stopped.said)
    assert len(saved) in (2, 3)
    assert "the jobs finish the step at hand and save it" in stopped.said
    assert "Traceback" not in stopped.said
    again = Sweep(tmp_path, words)
    assert again.ends() == 0, again.said
    assert "3 of 3 jobs done" in again.said
    assert again.steps() == [list(range(1, 301))] * 3
    assert logged(again.root, r"^train +continue +@(step \d+)").keys() == {f"step {step}" for step in saved}


@pytest.mark.parametrize("launcher", [WITH_JOBLIB])
def test_a_process_that_is_killed_costs_no_job(launcher: list[str], tiny: list[str], tmp_path: Path) -> None:
    """joblib takes all of them down with one."""
    sweep = Sweep(tmp_path, [*tiny, "algo.steps=300", "seed=1,2", "eval=none", *launcher])
    os.kill(sweep.until_saved(2)[0], signal.SIGKILL)
    assert sweep.ends() == 0, sweep.said
    assert "Jobs that have not ended are launched again" in sweep.said
    assert sweep.steps() == [list(range(1, 301))] * 2


@pytest.mark.parametrize("launcher", [WITH_SUBMITIT])
def test_the_same_line_follows_jobs_that_go_on(launcher: list[str], tiny: list[str], tmp_path: Path) -> None:
    """The command is killed, and its jobs are not; none is launched twice."""
    words = [*tiny, "algo.steps=600", "seed=1,2", "eval=none", *launcher]
    killed = Sweep(tmp_path, words)
    killed.until_saved(2)
    killed.process.kill()
    killed.ends()
    again = Sweep(tmp_path, words)
    assert again.ends() == 0, again.said
    assert again.said.count(": an earlier command launched it, and it runs") == 2
    assert "2 of 2 jobs done" in again.said
    assert logged(again.root, r"^(train) +done in") == {"train": 2}
    assert logged(again.root, r"^train +continue") == {}


IN_A_QUEUE = """
import sys
import tuner.cli.launched_jobs
from tuner.cli.main import main
tuner.cli.launched_jobs.QUEUES = ("submitit_local",)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("launcher", [WITH_SUBMITIT])
def test_ctrl_c_leaves_the_jobs_of_a_queue_alone(
    launcher: list[str], tiny: list[str], tmp_path: Path, tuner: Tuner
) -> None:
    """As those of Slurm, which is not here: submitit's own processes stand for its machines. Nobody follows
    them to their end, and how they rank is known all the same.
    """
    words = [*tiny, "algo.steps=300", "machine.save_every=20", "seed=1,2", "until=train", *launcher]
    left = Sweep(tmp_path, words, ["-c", IN_A_QUEUE])
    left.until_saved(2)
    os.killpg(left.process.pid, signal.SIGINT)
    assert left.ends() == 75
    assert "the jobs go on in the queue, and the same line follows them" in left.said
    while "2 of 2 jobs done" not in (ranking := tuner("status", "--sweep").out):
        assert running(tmp_path), ranking
        time.sleep(0.5)
    assert left.steps() == [list(range(1, 301))] * 2


@pytest.mark.parametrize("launcher", [WITH_SUBMITIT])
def test_a_job_that_is_warned_saves_and_is_queued_again(
    launcher: list[str], tiny: list[str], tmp_path: Path
) -> None:
    """As Slurm warns one whose machine is wanted."""
    sweep = Sweep(tmp_path, [*tiny, "algo.steps=600", "seed=1,2", "eval=none", *launcher])
    os.kill(sweep.until_saved(2)[0], signal.SIGUSR2)
    assert sweep.ends() == 0, sweep.said
    assert len(logged(sweep.root, r"^train +continue +@step \d+")) == 1
    assert sweep.steps() == [list(range(1, 601))] * 2


@pytest.mark.parametrize("launcher", [WITH_JOBLIB])
def test_from_python(
    launcher: list[str], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *tiny, "seed=1,2", "algo.steps=2", "eval=none", *launcher]
    runs = python_tuner.run(words)
    assert [run.config.seed for run in runs] == [1, 2]
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"runs", "store", "sweeps"}
    assert list((tmp_path / "outputs" / "sweeps").iterdir()) == []
    again = python_tuner.run([*words, "redo=tokenize"])
    assert [run.dir for run in again] == [run.dir for run in runs]
    logs = [(run.dir / "log").read_text(encoding="utf-8") for run in runs]
    assert sum(log.count("tokenize     done in") for log in logs) == 2  # once each time, for both


@pytest.mark.gpu
@pytest.mark.parametrize("launcher", [WITH_JOBLIB])
def test_no_two_jobs_are_on_one_gpu(
    launcher: list[str], tiny: list[str], tuner: Tuner, tmp_path: Path
) -> None:
    """Three jobs at once on two GPUs or more: each has its turn. Told by the logs of the runs."""
    if len(idle_gpus()) < 2:
        pytest.skip("needs two NVIDIA GPUs that are idle")
    words = [word for word in tiny if word != "machine=cpu"]
    tuner("-m", *words, "seed=1,2,3", "eval=none", *launcher, "hydra.launcher.n_jobs=3", timeout=500)
    taken: list[tuple[str, str, str]] = []
    for log in (tmp_path / "outputs" / "runs").glob("*/log"):
        text = log.read_text(encoding="utf-8")
        taken += re.findall(r"^(\S+)   on GPU (\d+) .*\n(?:.*\n)*?(\S+) \w+ +done in", text, re.MULTILINE)
    assert len({gpu for _, gpu, _ in taken}) > 1
    for (begin, gpu, end), (other_begin, other, other_end) in combinations(taken, 2):
        assert gpu != other or end <= other_begin or other_end <= begin
