"""A training on two machines, reached by the real ssh: what happens to it when a machine, the way to it, or a
process there is gone.

The machines are namespaces of this one (`tests/launch/machines.py`). Whatever happens, it ends in bounded
time, the machine is named, and nothing is left on either.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tests.launch.machines import Host, Started, machines, missing, until
from tests.launch.test_faults import ENV, TWO, adapter
from tests.launch.test_faults import straight as straight  # its fixture

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all is there")
PAIR = tuple[Host, Host]
APART = [*TWO, "machine.nodes=2", "machine.processes=1", "machine.timeout=60"]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[PAIR]:
    with machines(tmp_path / "machines") as pair:
        yield pair
        assert not [pid for host in pair for pid in host.ranks()], "a rank was left"


def hostfile(directory: Path, second: str = "second") -> Path:
    path = directory / "hosts"
    path.write_text(f"first slots=1\n{second} slots=1\n", encoding="utf-8")
    return path


def scene(first: Host, directory: Path, played: dict[str, Any], second: str = "second") -> Started:
    """A training without a model, started on the first machine."""
    out = directory / "out"
    out.mkdir(exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "tests.launch.ranked",
        str(out),
        "1",
        json.dumps({"timeout": 20, **played}),
        str(hostfile(directory, second)),
    ]
    return first.start(words, REPO, directory / "said", ENV)


def stepping(started: Started, directory: Path) -> None:
    until(
        60,
        lambda: (directory / "out" / "step").exists() or started.process.poll() is not None,
        "it does not step",
    )
    assert started.process.poll() is None, started.told()


ENDLESS = {"steps": 10**6, "pause": 0.01}


def test_two_machines_train_together(hosts: PAIR, tmp_path: Path) -> None:
    """Over the cable between them, though a name of each is a loopback address to itself, and each has a
    docker0.
    """
    started = scene(hosts[0], tmp_path, {})
    assert started.wait(60) == 0, started.told()
    assert "Done: [0.1, 0.2] over eth0" in started.told()


def kill_rank(pair: PAIR) -> None:
    (rank,) = pair[1].ranks()
    os.kill(rank, signal.SIGKILL)


def kill_sshd(pair: PAIR) -> None:
    for process in pair[1].processes("sshd"):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def unplug(pair: PAIR) -> None:
    pair[1].run("ip", "link", "set", "eth0", "down")


def turn_off(pair: PAIR) -> None:
    os.kill(pair[1].pid, signal.SIGKILL)


LOST = (
    r"train lost rank 1 of 2 on second: the connection broke, and ssh ended with code 255\. That machine is"
    r" down, or can't be reached any more\."
)


@pytest.mark.parametrize(
    ("fault", "seconds", "message"),
    [
        (kill_rank, 20, r"Rank 1 of 2 on second of train was killed \(SIGKILL\)"),
        pytest.param(kill_sshd, 20, LOST, marks=pytest.mark.slow),
        pytest.param(turn_off, 80, LOST, marks=pytest.mark.slow),
        pytest.param(unplug, 80, LOST, marks=pytest.mark.slow),
    ],
)
def test_a_machine_that_is_lost_is_named(
    fault: Callable[[PAIR], None], seconds: float, message: str, hosts: PAIR, tmp_path: Path
) -> None:
    """In seconds, or when ssh has asked three times; long before machine.timeout. What was cut off ends by
    itself within two minutes.
    """
    started = scene(hosts[0], tmp_path, ENDLESS | {"timeout": 600})
    stepping(started, tmp_path)
    fault(hosts)
    assert started.wait(seconds) == 1
    assert re.search(message, started.told()), started.told()
    assert not hosts[0].ranks()
    until(120, lambda: not hosts[1].ranks(), "a rank outlives its launcher")


@pytest.mark.slow
def test_none_outlives_a_launcher_that_was_killed(hosts: PAIR, tmp_path: Path) -> None:
    """On either machine; nor does what ssh has started there."""
    started = scene(hosts[0], tmp_path, ENDLESS | {"timeout": 600})
    stepping(started, tmp_path)
    started.signal(signal.SIGKILL)
    started.wait(20)
    until(
        20,
        lambda: not [pid for host in hosts for pid in host.processes("tuner")],
        "a process outlives its launcher",
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_one_that_is_stopped_is_ended_too(killed: bool, hosts: PAIR, tmp_path: Path) -> None:
    """It does not see that the launcher gives up, or is gone; what started it on its machine does."""
    started = scene(hosts[0], tmp_path, ENDLESS | {"timeout": 600 if killed else 6})
    stepping(started, tmp_path)
    (rank,) = hosts[1].ranks()
    os.kill(rank, signal.SIGSTOP)
    if killed:
        started.signal(signal.SIGKILL)
    assert started.wait(40) == (-signal.SIGKILL if killed else 1), started.told()
    assert killed or re.search(r"train hangs: rank 1 of 2 on second was not heard for 6 s", started.told()), (
        started.told()
    )
    until(20, lambda: not hosts[1].processes("tuner"), "a process outlives its launcher")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "covered", "message"),
    [
        ("absent", "", r"was not started on absent: ssh ended with code 255; .* reached without a password"),
        ("nobody@second", "", r"was not started on nobody@second: ssh ended with code 255"),
        (
            "second",
            sys.executable,
            (
                r"was not started on second: ssh ended with code 12[67]; .* Python, tuner and the store be"
                r" at the same paths"
            ),
        ),
        (
            "second",
            str(REPO / "tuner"),
            r"was not started on second: ssh ended with code 1; .* Python, tuner and the store",
        ),
        (
            "second",
            "out",
            r"On second: .*/out is not there, or not the same: all machines must see the store",
        ),
    ],
)
def test_a_machine_that_does_not_do_is_named(
    second: str, covered: str, message: str, hosts: PAIR, tmp_path: Path
) -> None:
    """It is absent, knows another user, has no Python, has no tuner, or has a directory of its own where
    the shared one should be.
    """
    if covered:
        path = tmp_path / covered
        path.mkdir(exist_ok=True) if covered == "out" else None
        hosts[1].run(
            "mount",
            "--bind",
            "/dev/null" if path.is_file() else str(tmp_path / "machines" / "empty"),
            str(path),
        )
    started = scene(hosts[0], tmp_path, {}, second)
    assert started.wait(60) in (1, 2), started.told()
    assert re.search(message, started.told()), started.told()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_front_door_goes_on_and_gives_the_bits_of_one_machine(
    number: signal.Signals, hosts: PAIR, tiny: list[str], tmp_path: Path, straight: bytes
) -> None:
    """Stopped or killed in the middle, and the same command again."""
    root = tmp_path / "root"
    words = [
        sys.executable,
        "-m",
        "tuner",
        f"root={root}",
        *tiny,
        *APART,
        f"machine.hostfile={hostfile(tmp_path)}",
    ]
    started = hosts[0].start(words, tmp_path, tmp_path / "said", ENV)
    # Looked at before it steps: that takes as long as some steps.
    until(120, lambda: len(hosts[1].ranks()) == 1, "it is not one process on the other machine")
    until(120, lambda: steps(root) >= 5 or started.process.poll() is not None, "it does not step")
    started.signal(number)  # at once: a step takes some hundredths of a second
    assert started.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 75), started.told()
    if number != signal.SIGKILL:
        assert re.search(r"Training was stopped after step \d+ of 40, which is saved", started.told()), (
            started.told()
        )
    until(20, lambda: not [pid for host in hosts for pid in host.ranks()], "a rank was left")
    again = hosts[0].start(words, tmp_path, tmp_path / "said", ENV)
    assert again.wait(120) == 0, again.told()
    assert re.search(r"continuing after step \d+ of 40", again.told())
    assert adapter(root) == straight


def steps(root: Path) -> int:
    """How many the training under way has done."""
    journals = (root / "store" / ".partial").glob("train-*/metrics.jsonl")
    return max((len(journal.read_text(encoding="utf-8").splitlines()) for journal in journals), default=0)
