"""Trackers: TensorBoard for real, the others where they are installed, and those that are missing, fail or
hang.
"""

import json
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tuner.train.monitor import trackers
from tuner.train.monitor.trackers import Trackers, open_trackers

CONFIG = {
    "algo.r": 8,
    "algo.optim.lr": 2e-4,
    "algo.targets": ("q_proj", "v_proj"),
    "data.path": str(REPO / "rows.jsonl"),
}


def row(step: int) -> dict[str, float]:
    return {
        "step": step,
        "loss": 1 / step,
        "lr": 1e-4,
        "grad_norm": 1.0,
        "tokens": 10 * step,
        "targets": 5,
        "seconds": 1.0,
        "tokens_per_second": 9.5,
    }


def run(kind: str, out: Path, begin: int, end: int) -> str:
    """A training from one step to another; returns the run's id."""
    said: list[str] = []
    opened = open_trackers(
        [kind],
        out,
        place=out.parent / "outputs" / "runs" / "one",
        project="proofs",
        name="train-3abb8f",
        config=CONFIG,
        step=begin,
        say=said.append,
    )
    for step in range(begin + 1, end + 1):
        opened.write(row(step))
    opened.text("samples", "**Hi**\n\nHello <b>", end)
    opened.close()
    assert said == []
    return (
        str(json.loads((out / "trackers.json").read_text(encoding="utf-8"))[kind])
        if kind != "tensorboard"
        else ""
    )


def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run("tensorboard", tmp_path, 0, 5)
    run("tensorboard", tmp_path, 3, 7)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (n, pytest.approx(1 / n)) for n in range(1, 8)
    ]
    assert {"train/lr", "train/grad_norm", "train/tokens_per_second", "train/targets"} <= set(
        events.Tags()["scalars"]
    )
    assert not (tmp_path / "trackers.json").exists()  # it knows its run by the directory


@pytest.mark.parametrize("kind", ["wandb", "swanlab", "mlflow", "trackio"])
def test_one_that_is_not_installed_is_said_and_left_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    said: list[str] = []
    opened = open_trackers(
        [kind], tmp_path, place=tmp_path, project="p", name="n", config={}, step=0, say=said.append
    )
    opened.write(row(1))
    opened.close()
    (sentence,) = said
    assert sentence.startswith(f"the tracker {kind} is not installed")
    assert f"pip install {kind}" in sentence
    assert "training goes on without it" in sentence
    assert not (tmp_path / "trackers.json").exists()


def test_one_that_can_not_be_opened_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file", encoding="utf-8")
    said: list[str] = []
    opened = open_trackers(
        ["tensorboard"], tmp_path, place=tmp_path, project="p", name="n", config={}, step=0, say=said.append
    )
    opened.write(row(1))
    opened.close()
    assert [sentence[:40] for sentence in said] == ["the tracker tensorboard failed (FileExis"]


class Flaky:
    """A tracker whose server goes away after two rows, or no longer answers."""

    run = "7"

    def __init__(self, hangs: threading.Event | None = None) -> None:
        self.hangs, self.got = hangs, list[int]()

    def scalars(self, values: Mapping[str, float], step: int) -> None:  # noqa: ARG002
        if step > 2 and self.hangs:
            self.hangs.wait()
        if step > 2:
            raise ConnectionError("the server is gone")
        self.got.append(step)

    def text(self, name: str, text: str, step: int) -> None: ...

    def close(self, failed: bool) -> None:
        self.got.append(-int(failed))


def opened(board: Flaky, said: list[str]) -> Trackers:
    line = trackers.TrackerThread("wandb", lambda: board, said.append)
    assert line.opened(time.monotonic() + 10)
    return Trackers([line])


def test_one_that_fails_is_said_once_and_dropped() -> None:
    board, said = Flaky(), list[str]()
    own = opened(board, said)
    for step in range(1, 6):
        own.write(row(step))
    own.close()
    assert said == [
        "the tracker wandb failed (ConnectionError: the server is gone); training goes on without it, "
        "and metrics.jsonl has all rows"
    ]
    assert board.got == [1, 2]


def test_one_that_hangs_delays_neither_steps_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSING", 0.3)
    back = threading.Event()
    board, said = Flaky(back), list[str]()
    own, began = opened(board, said), time.monotonic()
    for step in range(1, 2000):
        own.write(row(step))
    assert time.monotonic() - began < 5
    own.close()
    assert time.monotonic() - began < 10
    assert [sentence[:60] for sentence in said] == [
        "the tracker wandb did not finish in time, and may lack the l"
    ]
    back.set()


def test_a_training_that_failed_is_told_as_such() -> None:
    board = Flaky()
    opened(board, []).close(failed=True)
    assert board.got == [-1]


def test_what_is_no_number_is_not_sent() -> None:
    board: Any = Flaky()
    seen: list[Mapping[str, float]] = []
    board.scalars = lambda values, step: seen.append(values)  # noqa: ARG005
    own = opened(board, [])
    own.write(row(1) | {"grad_norm": float("inf"), "mfu": 0.4})
    own.close()
    assert set(seen[0]) == {
        f"train/{name}" for name in ("loss", "lr", "tokens", "targets", "tokens_per_second", "mfu")
    }


# Where they are installed. They keep what they have with the run, and nothing in the working directory.

real = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, value in (
        ("WANDB_MODE", "offline"),
        ("SWANLAB_MODE", "offline"),
        ("TRACKIO_DIR", str(tmp_path / "trackio")),
    ):
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "SWANLAB_LOG_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("out", "work", "outputs/runs/one"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    assert list((tmp_path / "work").iterdir()) == []


def twice(kind: str, home: Path) -> str:
    """Five steps, killed there, and on from step 3 in the same run."""
    first, second = run(kind, home / "out", 0, 5), run(kind, home / "out", 3, 8)
    assert first == second
    return first


@real
def test_wandb_goes_on_with_its_run(home: Path) -> None:
    pytest.importorskip("wandb")
    name = twice("wandb", home)
    files = sorted(home.glob(f"outputs/runs/one/wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert files
    sent = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in sent
    assert not [place for place in (REPO, home, sys.executable) if str(place).encode() in sent]


@real
def test_swanlab_goes_on_with_its_run(home: Path) -> None:
    pytest.importorskip("swanlab")
    name = twice("swanlab", home)
    directories = sorted(home.glob(f"outputs/runs/one/swanlog/run-*-{name}"))
    assert directories
    sent = b"".join(
        file.read_bytes() for directory in directories for file in directory.glob(f"run-{name}.swanlab")
    )
    assert b"train/loss" in sent
    assert not [place for place in (REPO, sys.executable) if str(place).encode() in sent]


@real
def test_mlflow_goes_on_with_its_run(home: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    name = twice("mlflow", home)
    with sqlite3.connect(home / "outputs" / "mlflow.db") as database:
        found = database.execute(
            "select run_uuid, step, value from metrics where key = 'train/loss' order by step"
        ).fetchall()
        parameters = dict(database.execute("select key, value from params"))
        tags = dict(database.execute("select key, value from tags"))
        states = database.execute("select status from runs").fetchall()
    database.close()
    assert found == [(name, step, 1 / step) for step in range(1, 9)]
    assert parameters == {"algo.r": "8", "algo.optim.lr": "0.0002", "algo.targets": "['q_proj', 'v_proj']"}
    assert tags == {"mlflow.runName": "train-3abb8f"}
    assert states == [("FINISHED",)]
    assert len(list(home.glob("outputs/mlruns/*/artifacts/samples/*.md"))) == 2


@real
def test_trackio_goes_on_with_its_run(home: Path) -> None:
    pytest.importorskip("trackio")
    assert twice("trackio", home) == "train-3abb8f"
    (file,) = home.glob("trackio/*.db")
    with sqlite3.connect(file) as database:
        found = [
            (step, json.loads(values))
            for step, values in database.execute("select step, metrics from metrics order by id")
        ]
    database.close()
    assert [step for step, values in found if "train/loss" in values] == list(range(1, 9))
