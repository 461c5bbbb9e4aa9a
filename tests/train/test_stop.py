"""SIGTERM, however often it comes, only asks."""

import os
import signal

from tuner.train.stop import Stop


def test_a_second_signal_does_not_end_the_step_at_hand() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.requested
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) == before
