"""Starting from what an earlier run made: identity, refusals, and a chain of three that is killed on the
way.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROWS, Tuner, environment, reasons, states, tiny_words, write_rows

SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
KILLS = 30 if os.environ.get("TUNER_TEST_ALL") else 5


def chained(parent: str, data: Path, *words: str) -> list[str]:
    return [
        "model=run",
        f"model.run={parent}",
        "data=local",
        f"data.path={data}",
        "data.length=64",
        "data.held_out=0.1",
        "algo.precision=fp32",
        "algo.steps=4",
        "algo.r=4",
        "machine=cpu",
        "machine.save_every=1",
        "machine.threads=1",
        "machine.trackers=[]",
        "eval=none",
        *words,
    ]


@pytest.fixture(scope="module")
def chain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[str]], Path]:
    """Three commands, each from the result of the one before, and the root in which nobody interrupted
    them.
    """
    path = tmp_path_factory.mktemp("chain")
    for week in (1, 2, 3):
        write_rows(path / f"week{week}.jsonl", ROWS[8 * week :])
    commands = [
        [*tiny_words(tiny_model, path / "week1.jsonl"), "name=week1", "until=merge"],
        [*chained("week1", path / "week2.jsonl"), "name=week2", "until=merge"],
        [*chained("week2", path / "week3.jsonl", "algo.init=continue"), "name=week3", "until=merge"],
    ]
    for words in commands:
        subprocess.run(
            [sys.executable, "-m", "tuner", f"root={path}/straight", *words],
            env=environment(),
            check=True,
            capture_output=True,
        )
    return commands, path / "straight"


def results(root: Path) -> dict[str, bytes]:
    return {
        f"{week}/{file.parent.name}/{file.name}": file.read_bytes()
        for week in ("week1", "week2", "week3")
        for run in (root / "runs").glob(f"{week}-*")
        for stage in ("convert", "merge")
        for file in sorted((run / stage).glob("*.safetensors"))
    }


@pytest.mark.slow
def test_a_killed_and_restarted_chain_gives_the_same_bits(
    chain: tuple[list[list[str]], Path], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    commands, straight = chain
    root, kills = tmp_path / "killed", KILLS
    for words in commands:
        while True:
            process = subprocess.Popen(
                [sys.executable, "-m", "tuner", f"root={root}", *words],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            if kills and draw.random() < 0.7:
                kills -= 1
                time.sleep(draw.uniform(0.5, 9))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            if process.wait(timeout=300) == 0:
                break
    names = {name.partition("-")[0] + name[name.index("/") :] for name in results(straight)}
    assert len(results(straight)) == 6, names
    assert list(results(root).values()) == list(results(straight).values()), f"seed {SEED}"


def test_a_chain_is_done_and_says_what_it_starts_from(
    tuner: Tuner, chain: tuple[list[list[str]], Path]
) -> None:
    commands, root = chain
    for words, how in zip(commands[1:], ("on its model", "going on with its adapter"), strict=True):
        plan = tuner("plan", "--check", f"root={root}", *words).out
        assert "starts from the run" in plan
        assert how in plan


@pytest.mark.slow
def test_a_rebuilt_parent_rebuilds_the_child(
    tuner: Tuner, chain: tuple[list[list[str]], Path], tmp_path: Path
) -> None:
    """Other bytes under the parent's name; the same bytes change nothing."""
    import shutil

    commands, straight = chain
    root = tmp_path / "root"
    shutil.copytree(straight, root, symlinks=True)
    tuner(f"root={root}", *commands[0], "redo=merge")
    tuner("plan", "--check", f"root={root}", *commands[1])
    rows = next(word for word in commands[0] if word.startswith("data.path=")).partition("=")[2]
    changed = tmp_path / "changed.jsonl"
    changed.write_text(
        Path(rows).read_text(encoding="utf-8").replace("plus 1 is", "plus 1 makes"), encoding="utf-8"
    )
    parent = [
        f"data.path={changed}" if word.startswith("data.path=") else word
        for word in commands[0]
        if not word.startswith("name=")
    ]
    tuner(f"root={root}", *parent, "name=other")
    # The child of the same name, from the other parent.
    other = [word.replace("model.run=week1", "model.run=other") for word in commands[1]]
    plan = tuner("plan", "--json", f"root={root}", *other)
    assert states(plan)["train"] == "run"
    assert "fetch_model changes" in reasons(plan)["train"]


def test_the_parents_directory_may_go(
    tuner: Tuner, chain: tuple[list[list[str]], Path], tmp_path: Path
) -> None:
    """The child holds what it reads: its links keep that from a clean, and verbs on it still work."""
    import shutil

    _, straight = chain
    root = tmp_path / "root"
    shutil.copytree(straight, root, symlinks=True)
    tuner("clean", "week1", f"root={root}")
    tuner("clean", "--all", f"root={root}")
    (child,) = (root / "runs").glob("week2-*")
    before = (child / "merge/model.safetensors").read_bytes()
    shutil.rmtree((child / "merge").resolve())
    tuner("merge", "week2", f"root={root}")
    assert (child / "merge/model.safetensors").read_bytes() == before


def test_refusals(tuner: Tuner, chain: tuple[list[list[str]], Path], tmp_path: Path) -> None:
    import shutil

    commands, straight = chain
    root = tmp_path / "root"
    shutil.copytree(straight, root, symlinks=True)
    data = Path(next(word for word in commands[0] if word.startswith("data.path=")).partition("=")[2])

    def error(*words: str) -> str:
        return tuner("plan", f"root={root}", *words, code=2).err

    assert "is no run under" in error(*chained("nobody", data))
    assert "model.run is not set" in error(
        *[word for word in chained("week1", data) if not word.startswith("model.run=")]
    )
    assert "goes with model=run" in error("model.run=week1")
    assert "can't be called like the one it starts from" in error(*chained("week1", data), "name=week1")
    assert "needs model=run" in error("algo.init=continue")
    assert (
        "Add: algo.r=4"
        in tuner(f"root={root}", *chained("week1", data, "algo.init=continue", "algo.r=8"), code=2).err
    )
    (first,), (second,) = (root / "runs").glob("week1-*"), (root / "runs").glob("week2-*")
    file = first / "config.yaml"
    file.write_text(
        file.read_text(encoding="utf-8")
        .replace("source: path", "source: run", 1)
        .replace("run: null", f"run: {second.name[-8:]}", 1),
        "utf-8",
    )
    assert "start from each other in a circle" in error(*chained("week2", data))
