"""Progress passes everything through, says little on a log, and draws a bar only on a terminal."""

import io
import re
import shutil
import sys
import time
from pathlib import Path

import pexpect
import pytest

from tests.conftest import environment
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


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_stages_between_have_bars_that_fit_the_window(
    finished: Path, words: list[str], tmp_path: Path, columns: int
) -> None:
    """What is done again: a merge, and two measurements with other questions."""
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    asked = [word for word in words if not word.startswith("eval.")]
    env = environment({"TERM": "xterm"})
    env.pop("COLUMNS", None)
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "tuner", *asked, "eval.prompts=[Who?]", "redo=merge", f"root={tmp_path / 'outputs'}"],
        env=env,
        encoding="utf-8",
        dimensions=(40, columns),
        timeout=120,
    )
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0, terminal.before
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", terminal.before)]
    bars = [line for line in plain if re.search(r"━.* +\d+%", line)]
    assert {found[0] for line in bars if (found := re.search("merge|held-out loss|answers", line))} == {
        "merge",
        "held-out loss",
        "answers",
    }
    assert max(map(len, bars)) <= columns
    # and while a library is loaded, something else moves
    assert {"baseline", "evaluate"} <= {
        found[1] for line in plain if (found := re.match(r"[⠀-⣿] (\w+) \d:\d\d:\d\d", line))
    }
