"""A training in two processes, through the front door: what happens to it when one of them, or the launcher,
is killed, stopped or asked to end.

Whatever it was, nobody is left behind, and the same command ends with the bits of a training that nothing
happened to.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Tuner, environment, linked
from tests.launch.ranked import fake_machines

TWO = [
    "machine.processes=2",
    "algo.steps=40",
    "algo.batch_tokens=128",
    "machine.preflight=false",
    "until=convert",
]
ENV = {"OMP_NUM_THREADS": "1"}


def start(root: Path, words: list[str], step: int) -> "subprocess.Popen[bytes]":
    """A run in the background, once its training has done `step`; `told(root)` is what it has said."""
    with (root.parent / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", f"root={root}", *words],
            env=environment(ENV),
            stdout=subprocess.DEVNULL,
            stderr=said,
            # a suite in the background ignores it, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    began = time.monotonic()
    while time.monotonic() - began < 240:
        assert process.poll() is None, told(root)
        for journal in (root / "store" / ".partial").glob("train-*/metrics.jsonl"):
            if len(journal.read_text(encoding="utf-8").splitlines()) >= step:
                return process
        time.sleep(0.005)
    raise AssertionError(f"no such step\n{told(root)}")


def told(root: Path) -> str:
    return (root.parent / "said").read_text(encoding="utf-8")


def ranks(process: "subprocess.Popen[bytes]") -> dict[int, int]:
    """Rank → pid of the processes that a launcher has started."""
    began, found = time.monotonic(), dict[int, int]()
    while sorted(found) != [0, 1]:  # a run that goes on has rows before it has processes
        assert time.monotonic() - began < 120
        found = _ranks(process)
    return found


def _ranks(process: "subprocess.Popen[bytes]") -> dict[int, int]:
    found = {}
    for pid in subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split():
        with suppress(FileNotFoundError, ProcessLookupError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(text[5:]): int(pid) for text in variables if text.startswith(b"RANK=")}
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def adapter(root: Path) -> bytes:
    return (linked(root, "convert") / "adapter_model.safetensors").read_bytes()


def goes_on(tuner: Tuner, root: Path, words: list[str]) -> None:
    """The same command continues after a step that was saved, and has done each step once."""
    done = tuner(f"root={root}", *words, env=ENV)
    assert re.search(r"continuing after step \d+ of 40", done.err)
    steps = [
        json.loads(line)["step"]
        for line in (linked(root, "train") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert steps == list(range(1, 41))


@pytest.fixture(scope="module")
def straight(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("straight") / "out"
    subprocess.run(
        [sys.executable, "-m", "tuner", f"root={root}", *words, *TWO],
        env=environment(ENV),
        check=True,
        capture_output=True,
    )
    return adapter(root)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_launcher_that_is_killed_takes_all_with_it(tuner: Tuner, tiny: list[str], tmp_path: Path) -> None:
    root, words = tmp_path / "out", [*tiny, *TWO]
    process = start(root, words, 5)
    there = ranks(process)
    process.kill()
    process.wait()
    began = time.monotonic()
    while any(alive(pid) for pid in there.values()):
        assert time.monotonic() - began < 20
        time.sleep(0.05)
    assert "continue" in tuner("plan", f"root={root}", *words).out  # not `wait`: the lock is free
    goes_on(tuner, root, words)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("whom", "what", "code", "message"),
    [
        (1, signal.SIGKILL, 1, r"Rank 1 of 2 of train was killed \(SIGKILL\)"),
        (0, signal.SIGKILL, 1, r"Rank 0 of 2 of train was killed \(SIGKILL\)"),
        (
            1,
            signal.SIGSTOP,
            1,
            r"train hangs: rank 1 of 2 was not heard for 20 s \(machine\.timeout; SIGSTOP has stopped it\)",
        ),
        (
            0,
            signal.SIGSTOP,
            1,
            r"train hangs: rank 0 of 2 was not heard for 20 s \(machine\.timeout; SIGSTOP has stopped it\)",
        ),
        (None, signal.SIGTERM, 75, r"Training was stopped after step \d+ of 40, which is saved"),
        (None, signal.SIGINT, 75, r"Training was stopped after step \d+ of 40, which is saved"),
        (1, signal.SIGTERM, 75, r"Training was stopped after step \d+ of 40, which is saved"),
    ],
)
def test_whatever_happens_is_told_and_gone_on_from(
    whom: int | None,
    what: signal.Signals,
    code: int,
    message: str,
    tuner: Tuner,
    tiny: list[str],
    tmp_path: Path,
    straight: bytes,
) -> None:
    root, words = tmp_path / "out", [*tiny, *TWO, "machine.timeout=20"]
    process = start(root, words, 3)
    there = ranks(process)
    os.kill(process.pid if whom is None else there[whom], what)
    began = time.monotonic()
    assert process.wait(timeout=120) == code, told(root)
    assert time.monotonic() - began < 20 + 30
    assert re.search(message, told(root)), told(root)
    assert not re.search(r"Traceback|gloo|peer", told(root))
    assert not any(alive(pid) for pid in there.values())
    goes_on(tuner, root, words)
    assert adapter(root) == straight


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_kills_at_random_steps_change_no_bit(
    tuner: Tuner, tiny: list[str], tmp_path: Path, straight: bytes
) -> None:
    """Of the launcher or of a rank, at a random moment after each second step."""
    root, words, seed = tmp_path / "out", [*tiny, *TWO, "machine.deterministic=true"], time.time_ns()
    print(f"seed {seed}")
    draw = random.Random(seed)
    for number in range(20):
        process = start(root, words, 2 * number)
        there = ranks(process)
        time.sleep(draw.random() * (1.0 if number else 8.0))
        with suppress(ProcessLookupError):
            os.kill(draw.choice([process.pid, *there.values()]), signal.SIGKILL)
        if process.wait(timeout=120) == 0:
            break  # it had done all steps before the kill came
        began = time.monotonic()
        while any(alive(pid) for pid in there.values()):
            assert time.monotonic() - began < 20
            time.sleep(0.05)
    tuner(f"root={root}", *words, env=ENV)
    assert adapter(root) == straight


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["ssh", "slurm"])
def test_two_machines_train_what_one_does(
    launcher: str, tuner: Tuner, tiny: list[str], tmp_path: Path, straight: bytes
) -> None:
    """A process on each of two machines: the bits of two processes on one."""
    env, words = (
        ENV | fake_machines(tmp_path / "fakes"),
        [*tiny, *TWO, "machine.nodes=2", "machine.processes=1", "machine.timeout=120"],
    )
    if launcher == "ssh":
        (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n", encoding="utf-8")
        words += [f"machine.hostfile={tmp_path}/hosts"]
    else:
        env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "both", "SLURMD_NODENAME": "127.0.0.1"}
    tuner(f"root={tmp_path}/out", *words, env=env)
    assert "127.0.0.2" in (tmp_path / "fakes" / "words").read_text(encoding="utf-8")
    assert adapter(tmp_path / "out") == straight


def test_a_command_that_was_started_several_times_is_refused(tuner: Tuner, tiny: list[str]) -> None:
    refused = tuner(*tiny, env={"WORLD_SIZE": "2", "RANK": "0"}, code=2)
    assert "torchrun has started this command 2 times" in refused.err
