"""Progress passes everything through, says little on a log, and draws a bar only on a terminal."""

import io
import sys
import time

import pytest

from tuner import progress


def test_short_work_says_nothing() -> None:
    said: list[str] = []
    assert list(progress.track(range(5), "work", 5, said.append)) == list(range(5))
    assert said == []


def test_long_work_says_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    said: list[str] = []
    list(progress.track(range(4), "work", 4, said.append))
    assert said == ["work: 25%", "work: 50%", "work: 75%", "work: 100%"]


def test_nothing_to_do() -> None:
    assert list(progress.track([], "work", 0, print)) == []


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress.track(range(3), "work", 3, print)) == [0, 1, 2]
    assert "work" in terminal.getvalue()


def test_a_bar_may_wait_and_then_shows_all_that_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress_bar("soon over", 4, print, after=60) as advance:
        advance(4)
    assert terminal.getvalue() == ""
    with progress.progress_bar("long", 4, print, after=0.05) as advance:
        advance(2)
        time.sleep(0.1)
        advance(1)
    assert "long" in terminal.getvalue()
    assert "75%" in terminal.getvalue()
