"""SIGTERM, however often it comes, only asks; a file asks too."""

import os
import signal
from pathlib import Path

from tuner.train.stop_signal import STOP_FILE, Stop


def test_a_second_signal_does_not_end_the_step_at_hand(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop(tmp_path) as stop:
        assert not stop.requested
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert not stop.by_hand
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_file_asks_until_it_is_answered_and_an_old_one_does_not(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    stop = Stop(tmp_path)
    assert not stop.requested
    (tmp_path / STOP_FILE).touch()
    assert stop.requested
    assert stop.by_hand
    stop.answered()
    assert not stop.requested
