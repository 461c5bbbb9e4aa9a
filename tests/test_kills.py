"""SIGKILL in every stage at random moments, inside a write and just before the rename: the next run
completes, and the bytes are the same.

The seed is printed; TUNER_TEST_SEED=N repeats it. `scripts/test --all` does a hundred kills a stage.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO, environment, linked

STAGES = ["fetch_data", "fetch_model", "tokenize", "train", "convert", "merge", "baseline", "evaluate"]
KILLS = 100 if os.environ.get("TUNER_TEST_ALL") else 3
SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
RESULTS = {
    "tokenize": ["train.arrow", "held_out.arrow", "ledger.json"],
    "train": ["steps/step-000006/weights.safetensors"],
    "convert": ["adapter_model.safetensors", "adapter_config.json"],
    "merge": ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"],
    "baseline": ["baseline.json"],
    "evaluate": ["report.json", "report.md", "eval.json"],
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that all kills of this module hit, stage after stage."""
    return tmp_path_factory.mktemp("broken") / "out"


def same(one: Path, other: Path, stage: str) -> None:
    for name in RESULTS.get(stage, []):
        assert (linked(one, stage) / name).read_bytes() == (linked(other, stage) / name).read_bytes(), (
            f"{stage}/{name} (seed {SEED})"
        )


def forget(root: Path, stage: str) -> None:
    for artifact in (root / "store").glob(f"{stage}-*"):
        shutil.rmtree(artifact)


def seconds(root: Path, stage: str) -> float:
    return float(json.loads((linked(root, stage) / "manifest.json").read_text(encoding="utf-8"))["seconds"])


def run_and_kill(
    words: list[str], log: Path, stage: str, delay: float | None, whom: str, at: str | None
) -> None:
    """Start the run; when `stage` has begun, wait `delay` and kill; or let the point `at` kill."""
    env = {"PYTHONPATH": str(REPO / "tests" / "killer"), "KILL_AT": at} if at else {}
    with log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            env=environment(env),
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
    if delay is not None:
        while process.poll() is None and not re.search(
            rf"^{stage} +(run|continue)", log.read_text(encoding="utf-8"), re.MULTILINE
        ):
            time.sleep(0.005)
        time.sleep(delay)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        try:
            if whom == "all":
                os.killpg(process.pid, signal.SIGKILL)
            elif whom == "child" and children:
                os.kill(int(children[0]), signal.SIGKILL)
            else:
                process.kill()
        except ProcessLookupError:
            pass
    process.wait(timeout=120)


@pytest.mark.timeout(max(600, 30 * KILLS))
@pytest.mark.parametrize(
    "stage",
    # what measures writes three small files at its end
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("baseline", "evaluate") else name
        for name in STAGES
    ],
)
def test_kills(stage: str, words: list[str], finished: Path, broken: Path, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    draw = random.Random(f"{SEED}/{stage}")
    until = (
        ["until=fetch"] if stage.startswith("fetch") else [f"until={stage}"] if stage != "baseline" else []
    )
    command = [f"root={broken}", *words, *until]
    long = seconds(finished, stage)
    forget(broken, stage)
    for number in range(KILLS):
        if number % 4 == 0:  # the manifest is written, the directory not yet renamed
            run_and_kill(command, tmp_path / "log", stage, None, "", rf"os.rename|store/{stage}-|0")
            assert not list((broken / "store").glob(f"{stage}-*"))
            assert [path for path in (broken / "store" / ".partial").glob(f"{stage}-*/manifest.json")]
        elif number % 4 == 1:  # while a file of the stage is being written, or right after
            run_and_kill(
                command,
                tmp_path / "log",
                stage,
                None,
                "",
                rf"open|\.partial/{stage}-[^/]*/|{draw.uniform(0.0001, 0.02):.5f}",
            )
        else:
            run_and_kill(
                command,
                tmp_path / "log",
                stage,
                draw.uniform(0, long),
                draw.choice(["all", "parent", "child"]),
                None,
            )
        forget(broken, stage)  # it got through before the kill: the next one gets its chance too
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {SEED}\n{done.stderr}"
    same(finished, broken, stage)
    assert not [
        path for path in (broken / "store" / ".partial").iterdir() if path.name.startswith(f"{stage}-")
    ]
