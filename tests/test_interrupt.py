"""Stopping on purpose and by accident: SIGTERM, Ctrl-C in a terminal, an orphaned training, a full disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.conftest import Tuner, environment, linked

LONG = ["algo.steps=120", "until=convert"]


def wait_for_step(root: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    """Until the training under `root` has written its journal's line for `step`."""
    for _ in range(6000):
        assert process.poll() is None, told(root)
        for journal in (root / "store" / ".partial").glob("train-*/metrics.jsonl"):
            if len(journal.read_text(encoding="utf-8").splitlines()) >= step:
                return
        time.sleep(0.01)
    raise AssertionError("no such step")


def start(root: Path, words: list[str]) -> "subprocess.Popen[bytes]":
    """Start a run in the background; `told(root)` is what it has said."""
    with (root.parent / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner", f"root={root}", *words],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


def told(root: Path) -> str:
    return (root.parent / "said").read_text(encoding="utf-8")


def child_of(process: "subprocess.Popen[bytes] | pexpect.spawn[str]") -> int:
    return int(
        subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )


def shown(text: str) -> str:
    """What a terminal shows of it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def adapter(root: Path) -> bytes:
    return (linked(root, "convert") / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the long run, uninterrupted."""
    root = tmp_path_factory.mktemp("straight")
    subprocess.run(
        [sys.executable, "-m", "tuner", f"root={root}/out", *words, *LONG],
        env=environment(),
        check=True,
        capture_output=True,
    )
    return adapter(root / "out")


def test_sigterm_saves_and_the_same_command_goes_on(
    tuner: Tuner, tiny: list[str], tmp_path: Path, straight: bytes
) -> None:
    root, words = tmp_path / "out", [*tiny, *LONG, "machine.save_every=1000"]
    process = start(root, words)
    wait_for_step(root, 7, process)
    process.terminate()
    assert process.wait(timeout=60) == 75, told(root)
    saved = int(re.search(r"stopped after step (\d+) of 120", told(root))[1])  # type: ignore[index]
    assert saved >= 7
    assert f"continue @step {saved}" in tuner("plan", f"root={root}", *words).out
    assert f"train stopped @step {saved}" in tuner("status", f"root={root}").out
    done = tuner(f"root={root}", *words)
    assert f"continuing after step {saved} of 120" in done.err
    assert adapter(root) == straight
    steps = [
        json.loads(line)["step"]
        for line in (linked(root, "train") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert steps == list(range(1, 121))


@pytest.mark.slow
def test_an_orphaned_training_saves_and_the_next_run_waits(
    tuner: Tuner, tiny: list[str], tmp_path: Path, straight: bytes
) -> None:
    root, words = tmp_path / "out", [*tiny, *LONG]
    process = start(root, words)
    wait_for_step(root, 5, process)
    child = child_of(process)
    process.kill()
    process.wait()
    done = tuner(f"root={root}", *words)
    assert "continuing after step" in done.err
    assert adapter(root) == straight
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_a_held_lock_is_waited_for(tuner: Tuner, tiny: list[str], tmp_path: Path, straight: bytes) -> None:
    """The orphan is stopped in its tracks (SIGSTOP): the second run must not touch its partial directory."""
    root, words = tmp_path / "out", [*tiny, *LONG]
    process = start(root, words)
    wait_for_step(root, 5, process)
    child = child_of(process)
    os.kill(child, signal.SIGSTOP)
    process.kill()
    process.wait()
    assert re.search(r"train +wait \(held by .*:\d+\)", tuner("plan", f"root={root}", *words).out)
    second = start(root, words)
    time.sleep(2)
    assert second.poll() is None
    os.kill(child, signal.SIGCONT)
    assert second.wait(timeout=120) == 0, told(root)
    assert "builds it" in told(root)
    assert adapter(root) == straight


def at_a_terminal(root: Path, words: list[str], columns: int = 120) -> "pexpect.spawn[str]":
    """A run as a person has it."""
    env = environment({"TERM": "xterm"})
    env.pop("COLUMNS", None)  # a suite in several processes sets it, and it goes before the terminal's width
    return pexpect.spawn(
        sys.executable,
        ["-m", "tuner", f"root={root}", *words],
        env=env,
        encoding="utf-8",
        dimensions=(40, columns),
        # a suite that runs in the background ignores it, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        timeout=120,
    )  # type: ignore[arg-type]


def test_ctrl_c_in_a_terminal(tiny: list[str], tmp_path: Path, straight: bytes) -> None:
    """A real terminal sends SIGINT to parent and child alike; both end in order, and the bar is a bar."""
    root, words = tmp_path / "out", [*tiny, *LONG]
    terminal = at_a_terminal(root, words)
    terminal.expect("/120")  # the bar is there, before the first step
    terminal.sendintr()
    terminal.expect(r"stopped after step \d+ of 120, which is saved")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 75
    subprocess.run(
        [sys.executable, "-m", "tuner", f"root={root}", *words],
        env=environment(),
        check=True,
        capture_output=True,
    )
    assert adapter(root) == straight


@pytest.mark.parametrize("columns", [60, pytest.param(80, marks=pytest.mark.slow)])
def test_the_second_ctrl_c_ends_at_once_and_says_so(
    tuner: Tuner, tiny: list[str], tmp_path: Path, columns: int
) -> None:
    """The training is stopped in its tracks, as by a step that takes long; a narrow terminal has the counter
    on one line.
    """
    root, words = tmp_path / "out", [*tiny, *LONG, "machine.save_every=2"]
    terminal = at_a_terminal(root, words, columns)
    terminal.expect(r"\b[3-9]/120")
    bars = [line for line in re.split(r"[\r\n]", shown(terminal.before + terminal.after)) if "/120" in line]
    assert not [bar for bar in bars if not bar.startswith("train") or len(bar) > columns]
    while not [*(root / "store" / ".partial").glob("train-*/steps/step-*[0-9]")]:
        time.sleep(0.01)
    child = child_of(terminal)
    os.kill(child, signal.SIGSTOP)
    terminal.sendintr()
    terminal.expect("finishing the step at hand and saving it; again to stop without saving")
    terminal.sendintr()
    terminal.expect("train was ended at once; the same command goes on from what was saved last")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 75
    assert "out of memory" not in terminal.before
    assert re.search(r"continue @step \d+", tuner("plan", f"root={root}", *words).out)


def test_before_the_first_step_there_is_nothing_to_wait_for(tiny: list[str], tmp_path: Path) -> None:
    terminal = at_a_terminal(tmp_path / "out", [*tiny, *LONG])
    terminal.expect("train +[0-9]|loading the model|rehearsing")
    terminal.sendintr()
    terminal.expect("train was stopped; run the same command again to go on")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 75
    assert "KeyboardInterrupt" not in terminal.before


@pytest.mark.slow
def test_a_rank_that_dies_is_named(tiny: list[str], tmp_path: Path) -> None:
    root = tmp_path / "out"
    process = start(root, [*tiny, *LONG])
    wait_for_step(root, 3, process)
    os.kill(child_of(process), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert "train was killed (SIGKILL)" in told(root)
    assert "Traceback" not in told(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", path], check=True)


def at_rest(pid: int) -> bool:
    """Whether SIGSTOP has reached all threads of a process."""
    stats = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tuner: Tuner, tiny: list[str], tmp_path: Path, small_disk: Path) -> None:
    """It fills up while the training runs: what the check before the start could not know."""
    root, words = small_disk / "out", [*tiny, *LONG]
    ballast = small_disk / "ballast"
    process = start(root, words)
    wait_for_step(root, 3, process)
    os.kill(child := child_of(process), signal.SIGSTOP)
    while not at_rest(child):  # the thread that saves finishes the write that it is in
        time.sleep(0.01)
    ballast.write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    os.kill(child, signal.SIGCONT)
    assert process.wait(timeout=60) in (1, 2), told(root)
    assert re.search(r"full|space", told(root))
    assert "Traceback" not in told(root)
    assert "done" in tuner("plan", f"root={root}", *words).out
    ballast.unlink()
    done = tuner(f"root={root}", *words)
    assert "continuing after step" in done.err
    tuner("plan", "--check", f"root={root}", *words)
    tuner(*words, f"root={tmp_path}/roomy")
    assert adapter(root) == adapter(tmp_path / "roomy")


@pytest.mark.slow
def test_a_plan_that_the_disk_does_not_hold_starts_nothing(
    tuner: Tuner, tiny: list[str], small_disk: Path
) -> None:
    """One run fits, and four at once do not: a sweep is looked at as a whole."""
    root = f"root={small_disk}/out"
    tuner(*tiny, root, "until=tokenize")
    (small_disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 1_150_000))
    before = sorted(path.name for path in (small_disk / "out/store").iterdir())
    refused = tuner("-m", *tiny, root, "seed=1,2,3,4", "merge.when=always", code=2)
    assert re.search(r"These 4 jobs need about .* of disk.* free.*Nothing was started", refused.err), (
        refused.err
    )
    assert sorted(path.name for path in (small_disk / "out/store").iterdir()) == before
    tuner(*tiny, root, "seed=1")
