"""A week with the tool, through the command line; after each step `status` and `plan` say what a person
expects.

Monday a training is begun, stopped, looked at, and gone on with. Tuesday and Wednesday add rows. Thursday
compares and sweeps. Friday cleans.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROWS, Done, Tuner, disk_usage, environment, states, tiny_words, write_rows


class Desk:
    """One output root and the commands on it."""

    def __init__(self, tuner: Tuner, path: Path) -> None:
        self.tuner, self.path, self.root = tuner, path, f"root={path}/outputs"

    def __call__(self, *words: str, code: int | None = 0) -> Done:
        return self.tuner(*words, self.root, code=code)

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in json.loads(self("status", "--json").out)["runs"]}

    def plan(self, *words: str) -> dict[str, str]:
        return states(self("plan", "--json", *words))

    def artifact(self, name: str, stage: str) -> Path:
        (run,) = (self.path / "outputs/runs").glob(f"{name}-????????")
        return (run / stage).resolve()

    def trainings(self) -> int:
        return len(list((self.path / "outputs/store").glob("train-*")))


@pytest.fixture
def desk(tuner: Tuner, tmp_path: Path) -> Desk:
    return Desk(tuner, tmp_path)


@pytest.fixture
def running(
    desk: Desk, tiny_model: Path, tmp_path: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", list[str]]]:
    """Monday's training, long enough to be stopped, and its words."""
    write_rows(tmp_path / "week1.jsonl", ROWS)
    words = [*tiny_words(tiny_model, tmp_path / "week1.jsonl"), "algo.steps=400", "until=convert"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", *words, "name=draft", desk.root],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process, words
    process.kill()
    process.wait()


def until_step(desk: Desk, step: int) -> None:
    for _ in range(1200):
        for file in (desk.path / "outputs/store/.partial").glob("train-*/metrics.jsonl"):
            if len(file.read_text(encoding="utf-8").splitlines()) >= step:
                return
        time.sleep(0.05)
    raise AssertionError("no such step")


@pytest.mark.slow
def test_a_week(desk: Desk, running: tuple["subprocess.Popen[bytes]", list[str]], tmp_path: Path) -> None:
    process, week1 = running

    # Monday: the training runs. What it has saved can be handed on meanwhile, with the number pinned.
    until_step(desk, 4)
    assert desk.status()["draft"]["state"].startswith("train running @step")
    assert desk.plan(*week1)["train"] == "wait"
    early = desk("convert", "draft")
    assert process.poll() is None
    pinned = json.loads((desk.artifact("draft", "convert") / "manifest.json").read_text(encoding="utf-8"))
    assert pinned["origin"]["inputs"]["convert.step"] == pinned["facts"]["step"] >= 4, early.err

    # It is stopped by hand.
    assert "is stopped at step" in desk("stop", "draft").out
    assert process.wait(timeout=60) == 75
    assert "no running training" in desk("stop", "draft", code=2).err
    stopped = desk.status()["draft"]
    assert stopped["state"].startswith("train stopped @step")
    step = int(stopped["state"].rpartition(" ")[2])
    assert desk.plan(*week1)["train"] == "continue"
    assert f"@step {step}" in desk("plan", *week1).out

    # The later stages go on from there; nothing trains.
    evaluated = desk("evaluate", "draft", "eval=none")
    assert "held-out loss" in evaluated.out
    assert desk.trainings() == 0
    assert desk.plan(*week1)["train"] == "continue"

    # A step by number is all that the pipeline asks of a training, too.
    assert desk.plan(*week1, f"convert.step={step}")["train"] == "part"

    # Renamed, and gone on with to an earlier end than first wished: that is a run of its own, which begins
    # where the other stopped.
    desk("rename", "draft", "support", "note=the third try")
    short = [*week1, f"algo.stop_step={step + 2}", "name=support-short"]
    assert desk.plan(*short)["train"] == "continue"
    done = desk(*short)
    assert f"continuing after step {step} of {step + 2}" in done.err
    status = desk.status()
    assert status["support"]["note"] == "the third try"
    assert status["support-short"]["state"] == "converted"

    # Tuesday: new rows, on the merged model. Wednesday: more, on with the same adapter.
    desk("merge", "support-short")
    write_rows(tmp_path / "week2.jsonl", ROWS[20:])
    chain = [
        "model=run",
        "data=local",
        f"data.path={tmp_path}/week2.jsonl",
        *week1[4:],
        "algo.steps=3",
        "until=merge",
    ]
    week2 = [*chain, "model.run=support-short", "name=week2"]
    week3 = [*chain, "model.run=week2", "algo.init=continue", "name=week3"]
    assert "starts from the run" in desk("plan", *week2).out
    desk(*week2)
    desk(*week3)
    for words in (week2, week3):
        assert set(desk.plan(*words).values()) <= {"done", "skip"}
    assert {desk.status()[name]["state"] for name in ("week2", "week3")} == {"merged"}

    # Thursday: side by side, then a sweep that shares what is equal and writes no merged model.
    compared = desk("compare", "support-short", "week2", "week3").out
    assert "model.run" in compared
    assert "training loss" in compared
    swept = [word for word in week2 if not word.startswith(("name=", "until="))]
    desk("-m", *swept, "seed=1,2", "until=evaluate", "eval=none")
    assert desk.plan(*swept, "seed=1", "eval=none", "merge.when=never")["merge"] == "skip"
    rows = json.loads(desk("status", "--json").out)
    assert sum(row["state"] == "done" for row in rows["runs"]) == 2

    # Friday: two runs go. What they alone used goes with the clean, and nothing else.
    kept = {
        name: (desk.artifact(name, "merge") / "model.safetensors").read_bytes() for name in ("week2", "week3")
    }
    before = desk.status()
    for name in ("support", "support-short"):
        desk("clean", name)
    predicted = json.loads(desk("status", "--json").out)
    assert "freed" in desk("clean", "--all").out
    after = json.loads(desk("status", "--json").out)
    assert after["store_bytes"] == pytest.approx(
        predicted["store_bytes"] - predicted["unreferenced_bytes"], rel=0.05
    )
    assert disk_usage(desk.path / "outputs/store") == pytest.approx(after["store_bytes"], rel=0.05)
    assert after["unreferenced_bytes"] == 0
    assert {row["name"] for row in after["runs"]} == before.keys() - {"support", "support-short"}
    assert kept == {name: (desk.artifact(name, "merge") / "model.safetensors").read_bytes() for name in kept}
    assert "is no run under" in desk("plan", *week2, code=2).err  # its parent is gone, and that is said
    assert "done" in desk("convert", "week2").err  # verbs on it need no parent
    assert set(desk.plan(*week3).values()) <= {"done", "skip"}


@pytest.mark.slow
def test_a_job_that_is_stopped_ends_alone(desk: Desk, tiny_model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    words = [*tiny_words(tiny_model, tmp_path / "rows.jsonl"), "algo.steps=1000", "until=train"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "-m", *words, "seed=1,2", desk.root],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for job in (1, 2):
        running = "running @step"
        for _ in range(1200):
            if running in desk("status").out:
                break
            time.sleep(0.1)
        desk("stop", "last")
        assert desk("status").out.count("train stopped @step") == job
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.count("stopped: ") == 2


@pytest.mark.slow
def test_a_raised_stop_costs_only_the_new_steps(desk: Desk, tiny_model: Path, tmp_path: Path) -> None:
    """20, then 40: the second command does 20 steps, and the result is that of a straight 40, bit for bit."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    words = [
        *tiny_words(tiny_model, tmp_path / "rows.jsonl"),
        "algo.steps=60",
        "machine.save_every=1000",
        "until=convert",
    ]
    desk(*words, "algo.stop_step=20")
    assert "continue @step 20" in desk("plan", *words, "algo.stop_step=40").out
    desk(*words, "algo.stop_step=40", "name=longer")
    desk.tuner(*words, "algo.stop_step=40", f"root={tmp_path}/straight", "name=straight")
    adapters = [
        (desk.artifact("longer", "convert") / "adapter_model.safetensors").read_bytes(),
        next((tmp_path / "straight/runs").glob("straight-*/convert/adapter_model.safetensors")).read_bytes(),
    ]
    assert adapters[0] == adapters[1]
    (log,) = (tmp_path / "outputs/runs").glob("longer-*/log")
    assert "continuing after step 20 of 40" in log.read_text(encoding="utf-8")
