"""Completion, in a real bash."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Tuner
from tuner.cli.completion import completion_script
from tuner.cli.verbs import VERBS
from tuner.config.build import field_paths
from tuner.config.overrides import GROUPS

COMPLETE = """
complete -p tuner
COMP_LINE=$1 COMP_POINT=${#1}
_tuner
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(line: str, directory: Path, extra: Path | None = None) -> list[str]:
    """What bash offers at the end of a line, as readline gets it."""
    done = subprocess.run(
        ["bash", "-uc", completion_script("bash", extra) + COMPLETE, "bash", line],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    registered, *offered = done.stdout.splitlines()
    assert registered == "complete -o default -F _tuner tuner"
    return [word for word in offered if word]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tuner pre", ["preview"]),
        ("tuner -m algo=lora cle", ["clean"]),
        ("tuner plan --", ["--check", "--json"]),
        ("tuner clean --dry", ["--dry-run"]),
        ("tuner clean --json", []),
        ("tuner --vers", ["--version"]),
        ("tuner mac", ["machine=", *(f"{path}=" for path in field_paths() if path.startswith("machine."))]),
        ("tuner model/", ["model/chat="]),
        ("tuner model=smollm2_135m_q", ["smollm2_135m_q4"]),
        ("tuner model/chat=chatm", ["chatml"]),
        ("tuner plan algo.optim.l", ["algo.optim.lr="]),
        ("tuner model=run doc", ["doctor"]),
        ("tuner chat la", ["last"]),
        ("tuner nonsense=", []),
    ],
)
def test_bash_offers(line: str, offered: list[str], tmp_path: Path) -> None:
    assert complete(line, tmp_path) == offered


def test_at_the_start_verbs_options_and_groups_are_offered(tmp_path: Path) -> None:
    offered = complete("tuner ", tmp_path)
    assert set(VERBS) | {f"{group}=" for group in GROUPS} <= set(offered)
    assert "--completion" in offered


def test_a_verb_on_a_run_offers_the_runs(tmp_path: Path) -> None:
    (tmp_path / "outputs/runs/support-26d8108c").mkdir(parents=True)
    assert complete("tuner chat sup", tmp_path) == ["support-26d8108c"]
    assert complete("tuner list sup", tmp_path) == []


def test_names_of_files_are_never_run(tmp_path: Path) -> None:
    for name in ("data/$(touch a).yaml", "data/`touch a`.yaml", "data/mine.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# mine\n")
    (tmp_path / "outputs/runs/$(touch a)").mkdir(parents=True)
    assert complete("tuner data=mi", tmp_path, extra=tmp_path) == ["mine", "mix"]
    complete("tuner chat ", tmp_path, extra=tmp_path)
    assert not (tmp_path / "a").exists()


def test_the_command_line_prints_it(tuner: Tuner) -> None:
    script = tuner("--completion", "bash").out
    assert script.strip() == completion_script("bash", None).strip()
    assert tuner("--completion", "zsh").out.startswith("autoload")
    assert "bash or zsh" in tuner("--completion", code=2).err
    assert "not 'fish'" in tuner("--completion", "fish", code=2).err
