"""A storm: kills and stops of everything at random moments, one after the other on one output root: the
command, one of its processes, or all of them, while it runs, sweeps, cleans, renames, does again, exports.
What is published is always whole, and at the end the bytes are those of a run that nobody disturbed.

The seed is printed; TUNER_TEST_SEED=N repeats it, TUNER_TEST_ROUNDS=N says how many rounds.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.test_kills import RESULTS
from tests.test_stops import command
from tuner.store.artifacts import Store

ROUNDS = int(os.environ.get("TUNER_TEST_ROUNDS") or 150)
SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
SWEEP = ["-m", "algo.steps=3,4", "until=convert"]
SEEDED = ("run", "sweep", "again")
LONG = (*SEEDED, "group")
VICTIMS = ("command", "child", "all")


def strike(process: "subprocess.Popen[str]", victim: str, kind: signal.Signals, dice: random.Random) -> None:
    if victim == "all":
        os.killpg(process.pid, kind)
        return
    told = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    whom = int(dice.choice(told)) if victim == "child" and told else process.pid
    os.kill(whom, kind)


def whole(root: Path, told: str) -> None:
    """All that is published has the files and the bytes that its manifest says."""
    store = Store(root / "store")
    for path in sorted((root / "store").glob("[!.]*-*")):
        artifact = store.find(path.name)
        assert artifact is not None, f"{told}\n{path} has no manifest"
        assert store.damage(artifact, deep=True) is None, f"{told}\n{path}"


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_after_a_storm_all_is_as_if_there_had_been_none(
    words: list[str], finished: Path, tmp_path: Path
) -> None:
    print("seed", SEED, "rounds", ROUNDS)
    dice, counts = random.Random(SEED), Counter[str]()
    root, out = tmp_path / "out", tmp_path / "exported"
    commands = {
        "run": words,
        "sweep": [*SWEEP, *words],
        "again": [*words, "redo=train"],
        "group": [*words, "machine.processes=2", "until=convert"],
        "rename": ["rename", "last", "other"],
        "export": ["export", "last", "adapter", str(out)],
        "clean": ["clean", "--all"],
        "status": ["status"],
        "evaluate": ["evaluate", "last"],
    }
    for number in range(ROUNDS):
        name = dice.choice(["run", "run", "run", "sweep", "again", "group", *commands])
        # another seed is other work
        seed = dice.randrange(5) if name in SEEDED else 9 + number
        seeds = [f"seed={seed}"] if name in LONG else []
        words_now = [*commands[name], *seeds]
        victim = dice.choice(VICTIMS)
        kind = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        moment = dice.uniform(0, 14 if name == "group" else 9 if name in LONG else 0.8)
        told = f"seed {SEED}, round {number}: {kind.name} to {victim} after {moment:.3f} s of {name}"
        shutil.rmtree(out, ignore_errors=True)
        process, began = command(root, words_now, session=True), time.monotonic()
        while process.poll() is None and time.monotonic() - began < moment:
            time.sleep(0.005)
        struck = process.poll() is None
        if struck:
            try:
                strike(process, victim, kind, dice)
            except ProcessLookupError:
                struck = False
        _, said = process.communicate(timeout=120)
        counts[f"{name}: {'struck' if struck else 'through'}"] += 1
        early = "KeyboardInterrupt" in said  # Python's own, which starts or ends
        assert early or "Traceback" not in said, f"{told}\n{said}"
        if not struck:
            # without a run there is nothing to rename, export or evaluate
            assert process.returncode in (0, 2), f"{told}\n{said}"
        whole(root, told)
        if name == "export" and out.exists():
            assert (out / "adapter_model.safetensors").is_file(), told
    print(dict(sorted(counts.items())))
    done = command(root, [*words, "name=last"], session=True)
    _, said = done.communicate(timeout=300)
    assert done.returncode == 0, f"seed {SEED}\n{said}"
    (run,) = (root / "runs").glob("last-*")
    (undisturbed,) = (finished / "runs").iterdir()
    for stage, names in RESULTS.items():
        for name in names:
            found, right = run / stage / name, undisturbed / stage / name
            assert found.read_bytes() == right.read_bytes(), f"{stage}/{name} (seed {SEED})"
