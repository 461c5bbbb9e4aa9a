"""Searches that really train: Optuna finds a planted optimum in fewer steps than random draws, and one that
was killed goes on as one that was not. Minutes; `scripts/test --all`.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Tuner, environment
from tuner.pipeline.sweeps import SweepDirectory, SweepJob, find_sweep
from tuner.train.monitor.rows import read_rows

pytest.importorskip("optuna")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, TRIALS = 100, 12
LINE = [
    "-m",
    "hydra/sweeper=optuna",
    "algo.optim.lr=tag(log,interval(1e-7,10))",
    "until=train",
    "machine.preflight=false",
    "machine.measure_every=10",
]
TARGET = 5.02
"""a held-out loss that rates from about 0.002 to 0.02 come to, one decade of the eight"""


def rows_of(sweep: SweepDirectory, job: SweepJob) -> list[dict[str, float]]:
    run = sweep.find_run(job)
    assert run
    return read_rows(run.path("train") / "metrics.jsonl")


def steps_to_find(sweep: SweepDirectory) -> int | None:
    """The steps of all trials up to the first whose held-out loss is as low as TARGET."""
    steps = 0
    for job in sweep.jobs():
        rows = rows_of(sweep, job)
        steps += len(rows)
        if not job.pruned and rows[-1]["held_out"] <= TARGET:
            return steps
    return None


def test_it_finds_a_planted_optimum_in_fewer_steps_than_random_draws(
    tuner: Tuner, tiny: list[str], tmp_path: Path
) -> None:
    """At the same number of trials. The rates between 1e-7 and 10 of which training comes far are few."""
    line = [*LINE, *tiny, f"algo.steps={STEPS}", "machine.save_every=50", f"hydra.sweeper.n_trials={TRIALS}"]
    found: dict[str, int | None] = {}
    steps: dict[str, int] = {}
    for name, words in {
        "tpe": ["hydra.sweeper.sampler.n_startup_trials=4", "hydra.sweeper.pruner.n_startup_trials=2"],
        "random": ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"],
    }.items():
        tuner(*line, *words, f"root={tmp_path}/{name}", "hydra.sweeper.sampler.seed=1", timeout=900)
        sweep = find_sweep(tmp_path / name)
        assert len(sweep.jobs()) == TRIALS
        steps[name] = sum(len(rows_of(sweep, job)) for job in sweep.jobs())
        found[name] = steps_to_find(sweep)
    assert steps["random"] == STEPS * TRIALS
    assert found["tpe"] is not None
    assert found["tpe"] < (found["random"] or steps["random"])
    assert steps["tpe"] < steps["random"]


def table(root: Path) -> list[dict[str, str]]:
    """ranking.csv, without what a clock tells: how long it took, and when a trial that was pruned ended."""
    (file,) = (root / "sweeps").glob("*/ranking.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return [
        {
            name: cell
            for name, cell in row.items()
            if name in ("rank", "job", "algo.optim.lr", "run", "state")
            or (row["state"] != "pruned" and name != "seconds")
        }
        for row in rows
    ]


def test_a_search_that_was_killed_goes_on_as_one_that_was_not(
    tuner: Tuner, tiny: list[str], tmp_path: Path
) -> None:
    line = [*LINE, *tiny, "algo.steps=400", "machine.save_every=10", "hydra.sweeper.n_trials=5"]
    line += ["hydra.sweeper.pruner.n_startup_trials=1"]
    whole = tuner(*line, "root=whole", timeout=900)
    killed, log = tmp_path / "killed", tmp_path / "log"
    with log.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *line, f"root={killed}"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )
    # while the first trial trains, which nothing prunes
    while not list(killed.glob("store/.partial/train-*/steps/step-*[0-9]/state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "0 of 5 jobs done" in tuner("status", "--sweep", f"root={killed}").out
    assert "0 of 5 trials finished" in tuner("plan", *line, f"root={killed}").out

    done = tuner(*line, f"root={killed}", timeout=900)
    assert re.search(
        r"^── trial 1 of 5: .*\n(?:(?!──).*\n)*train +continue +@step [1-9]", done.err, re.MULTILINE
    )
    assert len(re.findall(r"^── trial \d of 5: \S+$", done.err, re.MULTILINE)) == 5
    assert table(killed) == table(tmp_path / "whole")
    assert done.out.splitlines()[0] == whole.out.splitlines()[0]
    assert any(row["state"] == "pruned" for row in table(killed))
    sweep = find_sweep(killed)
    for job in sweep.jobs():
        steps = [row["step"] for row in rows_of(sweep, job)]
        assert steps == list(range(1, len(steps) + 1))
        assert (len(steps) < 400) == job.pruned
    # what was pruned can be gone on with
    (pruned, *_) = (job for job in sweep.jobs() if job.pruned)
    lr = pruned.words["algo.optim.lr"]
    alone = tuner(
        *LINE[3:], *tiny, f"algo.optim.lr={lr}", "algo.steps=400", "machine.save_every=10", f"root={killed}"
    )
    assert re.search(r"^train +continue +@step [1-9]", alone.err, re.MULTILINE)
