from pathlib import Path

import pytest

from tuner.train.journal import Journal, read_rows
from tuner.train.progress import Progress


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1.0, "lr": 0.1, "grad_norm": 2.0, "tokens": 10 * step, "seconds": 1.5 * step, "tokens_per_second": 6.7}


def write(out: Path, begin: int, end: int, *, tensorboard: bool = False) -> Journal:
    journal = Journal(out, step=begin, tensorboard=tensorboard, say=lambda line: pytest.fail(line))
    for step in range(begin + 1, end + 1):
        journal.write(row(step))
    journal.sync()
    journal.close()
    return journal


def test_rows_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')
    journal = Journal(tmp_path, step=3, tensorboard=False, say=print)
    assert (journal.seconds, journal.last) == (4.5, row(3))
    journal.close()
    write(tmp_path, 3, 6)
    assert read_rows(tmp_path / "metrics.jsonl") == [row(step) for step in range(1, 7)]


def test_tensorboard(tmp_path: Path) -> None:
    write(tmp_path, 0, 2, tensorboard=True)
    assert [path.name.startswith("events.out.tfevents") for path in (tmp_path / "tensorboard").iterdir()] == [True]


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with Progress(start=2, steps=6, say=said.append) as progress:
        for step in range(3, 7):
            progress.show(row(step))
    assert [line.split("  ")[0] for line in said] == ["step 3/6", "step 6/6"]
    assert "loss 1.0000  7 tokens/s  0 s left" in said[-1]


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(start=0, steps=2, say=lambda line: pytest.fail(line)) as progress:
        progress.show(row(1))
        progress.show(row(2))
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss 1.0000  7 tokens/s  0 s left" in shown
