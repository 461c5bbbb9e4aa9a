"""Steps' times are those of the device, and not of when the host reads them."""

import time

import pytest
import torch

from tuner.train.monitor.step_clock import StepClock


def test_laps_go_from_moment_to_moment_and_leave_out_what_is_measured() -> None:
    clock = StepClock(torch.device("cpu"))
    ended = clock.mark()
    first = clock.lap(ended())
    assert first >= 0
    with clock.stopped():
        time.sleep(0.05)
    assert 0 <= clock.lap(clock.mark()()) < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_steps_that_are_read_together_took_as_long_as_they_took() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    clock = StepClock(device)
    ends = []
    for repeats in (20, 20, 60):
        for _ in range(repeats):
            x @ x
        ends.append(clock.mark())
    _, second, third = (clock.lap(end()) for end in ends)  # all are read when the last one has ended
    assert third == pytest.approx(3 * second, rel=0.2)
