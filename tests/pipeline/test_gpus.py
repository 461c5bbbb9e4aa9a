"""GPUs are claimed while a stage computes on them: no two take the same one, unless it is named."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.hardware.smi import A, B, C, nvidia_smi
from tuner.errors import ConfigError
from tuner.hardware.gpus import VISIBLE_DEVICES
from tuner.pipeline.gpus import claimed_gpus, idle_gpus

CARDS = "".join(
    f"{i}, {uuid}, NVIDIA A100-SXM4-80GB, 81920, {used}, 580.95.05, Disabled\n"
    for i, (uuid, used) in enumerate(((A, 1024), (B, 2048), (C, 70000)))
)
"""two that are idle and one that is not"""

TAKE = """
import sys, time
from tuner.pipeline.gpus import claimed_gpus
with claimed_gpus(int(sys.argv[1]), lambda why: print("waits", why, flush=True)) as (_, claimed):
    print("begins", time.monotonic(), claimed.visible, flush=True)
    time.sleep(float(sys.argv[2]))
    print("ends", time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True)
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "bin", CARDS)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)


def take(count: int, seconds: float) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", TAKE, str(count), str(seconds)]
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)


def told(process: "subprocess.Popen[str]") -> tuple[set[str], float, float]:
    """Which GPUs a process had, from when and until when."""
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    said = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    return set(said["begins"][1].split(",")), float(said["begins"][0]), float(said["ends"][0])


def test_no_two_that_begin_together_have_the_same_gpu() -> None:
    """Three that take one and one that takes two, on two: each has its turn, whatever the order."""
    found = [told(process) for process in [take(count, 0.4) for count in (1, 2, 1, 1)]]
    assert set().union(*(uuids for uuids, _, _ in found)) == {A, B}
    for (some, begin, end), (others, other_begin, other_end) in combinations(found, 2):
        assert not some & others or end <= other_begin or other_end <= begin


@pytest.fixture
def taken() -> Iterator[None]:
    """A is taken by another process."""
    process = take(1, 60)
    assert process.stdout is not None
    assert process.stdout.readline().split()[2] == A
    yield
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("taken")
def test_a_gpu_that_is_named_is_shared_and_another_is_not() -> None:
    def unasked(why: str) -> None:
        pytest.fail(why)

    assert [gpu.uuid for gpu in idle_gpus()] == [B]
    with ExitStack() as stack:
        assert stack.enter_context(claimed_gpus("auto", unasked))[1].visible == B
        _, both = stack.enter_context(claimed_gpus((0, 1), unasked))
        assert (both.visible, both.locks) == (f"{A},{B}", [])
        assert idle_gpus() == []
    assert [gpu.uuid for gpu in idle_gpus()] == [B]


@pytest.mark.usefixtures("taken")
def test_who_is_waited_for_is_said_and_a_stranger_is_not_waited_for() -> None:
    class Waits(Exception):
        pass

    def waits(why: str) -> None:
        raise Waits(why)

    with pytest.raises(Waits, match=r":\d+ is on GPU 0; machine.gpus=\[0\] takes it"), claimed_gpus(2, waits):
        pass
    with pytest.raises(ConfigError, match="3 wanted, 1 of 3 visible idle"), claimed_gpus(3, waits):
        pass


def test_a_gpu_is_free_again_when_its_process_was_killed() -> None:
    process = take(2, 60)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("begins")
    assert idle_gpus() == []
    process.kill()
    process.communicate()
    assert [gpu.uuid for gpu in idle_gpus()] == [A, B]
