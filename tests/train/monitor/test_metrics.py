import json
import time
from pathlib import Path

import pytest
import torch

from tuner.train.monitor.metrics import Journal, device_usage
from tuner.train.monitor.progress import Progress
from tuner.train.monitor.rows import read_rows
from tuner.train.monitor.trackers import open_trackers


def row(step: int, **more: float) -> dict[str, float]:
    usual = {
        "step": step,
        "loss": 1.0,
        "lr": 0.1,
        "grad_norm": 2.0,
        "tokens": 10 * step,
        "targets": 5,
        "seconds": 1.5 * step,
    }
    return usual | {"tokens_per_second": 6.7, "memory": 3 * 2**30} | more


def write(out: Path, begin: int, end: int, *, writes: bool = True) -> Journal:
    journal = Journal(out, step=begin, writes=writes)
    for step in range(begin + 1, end + 1):
        journal.write(row(step, **({"held_out": 2.0 / step} if step % 2 == 0 else {})))
    journal.sync()
    journal.close()
    return journal


def test_rows_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')
    journal = Journal(tmp_path, step=3)
    assert (journal.seconds, journal.last) == (4.5, row(3))
    assert journal.measured == [(2, 1.0)]
    assert [one["step"] for one in journal.recent] == [1, 2, 3]
    journal.close()
    whole = write(tmp_path, 3, 6)
    assert [one["step"] for one in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, 7))
    assert whole.measured == [(2, 1.0), (4, 0.5), (6, 2.0 / 6)]


def test_other_processes_know_the_rows_and_write_none(tmp_path: Path) -> None:
    write(tmp_path, 0, 4)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    other = write(tmp_path, 2, 6, writes=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert other.measured == [(2, 1.0), (4, 0.5), (6, 2.0 / 6)]
    assert other.last is not None
    assert other.last["step"] == 6


def test_usage_of_a_processor() -> None:
    held = torch.ones(64 * 2**20)  # 256 MiB
    found = device_usage(torch.device("cpu"), flops=6e12, seconds=2.0, peak=1e12, processes=4)
    assert found["mfu"] == 0.75
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    assert found["memory"] == pytest.approx(1024 * int(status["VmHWM"].split()[0]), rel=0.02)
    assert found["memory"] > held.numel() * 4
    assert device_usage(torch.device("cpu"), flops=6e12, seconds=2.0, peak=None, processes=1).keys() == {
        "memory"
    }


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with Progress(start=2, steps=6, say=said.append) as progress:
        for step in range(3, 7):
            progress.show(row(step))
    assert said == [f"step {step}/6  loss 1.0000  7 tokens/s  lr 1.00e-01  3.0 GiB" for step in (3, 6)]


def test_the_first_step_does_not_count_for_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 100.0, 120.0, 140.0, 160.0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress(start=0, steps=4, say=said.append) as progress:
        for step in range(1, 5):
            progress.show(row(step, mfu=0.4))
    assert [line.split("  ")[2] for line in said] == ["7 tokens/s", "40 s left", "20 s left", "7 tokens/s"]
    assert "  mfu 40 %  " in said[0]


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with Progress(start=0, steps=2, say=lambda line: pytest.fail(line)) as progress:
        progress.show(row(1))
        progress.show(row(2))
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss 1.0000  7 tokens/s  lr 1.00e-01  3.0 GiB" in shown


def test_other_ranks_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(start=0, steps=2, say=lambda line: pytest.fail(line), shown=False) as progress:
        progress.show(row(1))
    assert capsys.readouterr().err == ""


def test_trackers_get_the_rows(tmp_path: Path) -> None:
    trackers = open_trackers(
        ["tensorboard"],
        tmp_path,
        place=tmp_path,
        project="p",
        name="n",
        config={},
        step=0,
        say=lambda line: pytest.fail(line),
    )
    journal = Journal(tmp_path, step=0, trackers=trackers)
    journal.write(row(1))
    journal.text("samples", "**Hi**\n\nHello", 1)
    journal.close()
    assert [path.name.startswith("events.out.tfevents") for path in (tmp_path / "tensorboard").iterdir()] == [
        True
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8")) == row(1)
