import time

import pytest
import torch

from tuner.train.read_later import read_later


def test_what_lies_on_the_host_is_there() -> None:
    values = torch.tensor([1.5, -2.0])
    assert read_later(values)().tolist() == [1.5, -2.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_later_work_of_the_device_is_not_waited_for() -> None:
    values = torch.arange(3.0, device="cuda") + 1
    read_later(values)()  # what is done once is done
    read = read_later(values * 2)
    torch.cuda._sleep(1 << 30)  # half a second or more
    began = time.monotonic()
    found, waited = read().tolist(), time.monotonic() - began
    began = time.monotonic()
    torch.cuda.synchronize()
    assert found == [2.0, 4.0, 6.0]
    assert waited < 0.05 < time.monotonic() - began
