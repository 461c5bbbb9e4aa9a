"""Completion, in real shells."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.conftest import Tuner
from tuner.cli.completion import completion_script
from tuner.cli.parse import OPTIONS
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
        ("tuner prev", ["preview"]),
        ("tuner -m algo=lora cle", ["clean"]),
        ("tuner plan --", ["--check", "--json", *OPTIONS]),
        ("tuner plan --he", ["--help"]),
        ("tuner clean --dry", ["--dry-run"]),
        ("tuner clean --json", []),
        ("tuner help pre", ["preview", "predict"]),
        ("tuner list mac", ["machine"]),
        ("tuner export last orig", ["original"]),
        ("tuner -cd ", []),
        ("tuner --completion ", ["bash", "zsh", "fish"]),
        ("tuner --vers", ["--version"]),
        ("tuner mac", ["machine=", *(f"{path}=" for path in field_paths() if path.startswith("machine."))]),
        ("tuner model/", ["model/chat="]),
        ("tuner -m hydra/", ["hydra/sweeper=optuna"]),
        (
            "tuner -m hydra.sweeper.p",
            ["hydra.sweeper.pruner.n_startup_trials=", "hydra.sweeper.pruner.n_warmup_steps="],
        ),
        ("tuner model=smollm2_135m_q", ["smollm2_135m_q4"]),
        ("tuner model/chat=chatm", ["chatml"]),
        ("tuner plan algo.optim.l", ["algo.optim.lr="]),
        ("tuner model=run doc", ["doctor"]),
        ("tuner chat la", ["last"]),
        ("tuner algo.schedule=co", ["cosine", "constant"]),
        ("tuner algo.dora=t", ["true"]),
        ("tuner until=to", ["tokenize"]),
        ("tuner nonsense=", []),
    ],
)
def test_bash_offers(line: str, offered: list[str], tmp_path: Path) -> None:
    assert complete(line, tmp_path) == offered


def test_at_the_start_verbs_options_and_groups_are_offered(tmp_path: Path) -> None:
    offered = complete("tuner ", tmp_path)
    assert offered == [*VERBS, *(f"{group}=" for group in GROUPS)]
    assert complete("tuner -", tmp_path) == list(OPTIONS)


def test_a_verb_on_a_run_offers_the_runs(tmp_path: Path) -> None:
    (tmp_path / "outputs/runs/support-26d8108c").mkdir(parents=True)
    assert complete("tuner chat sup", tmp_path) == ["support-26d8108c"]
    assert complete("tuner compare support-26d8108c la", tmp_path) == ["last"]
    assert complete("tuner model=run model.run=sup", tmp_path) == ["support-26d8108c"]
    assert complete("tuner list sup", tmp_path) == []
    (tmp_path / "elsewhere/runs/客服-2").mkdir(parents=True)
    assert complete("tuner root=elsewhere chat 客", tmp_path) == ["客服-2"]
    (tmp_path / "elsewhere/runs/b c-1").mkdir()
    assert complete("tuner root=elsewhere chat b", tmp_path) == ["b\\ c-1"]


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
    assert tuner("--completion", "fish").out.startswith("function")
    assert "bash, zsh or fish" in tuner("--completion", code=2).err
    assert "not 'ksh'" in tuner("--completion", "ksh", code=2).err


def test_making_the_script_loads_no_library_of_models() -> None:
    """It is made whenever a shell starts; completing itself starts no Python."""
    code = (
        "import sys; from tuner.cli.main import main; main(['--completion', 'zsh'])\n"
        "print(sorted({'torch', 'transformers', 'hydra', 'pyarrow'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


STARTED = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "-i"],
}
"""shell → what starts it without anybody's settings"""


@pytest.fixture(params=STARTED)
def typed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """What the words of a line are after its last was completed with the Tab key, in a terminal."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "elsewhere/runs/support-26d8108c").mkdir(parents=True)
    script = tmp_path / "completion"
    script.write_text(completion_script(shell, None), encoding="utf-8")
    told = tmp_path / "told"
    command = tmp_path / "tuner"
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" > {told}\n', encoding="utf-8")
    command.chmod(0o755)
    terminal = pexpect.spawn(
        shell,
        STARTED[shell],
        cwd=str(tmp_path),
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin:{Path(shutil.which(shell) or '').parent}",
            "HOME": str(tmp_path),
        }
        | {"TERM": "xterm", "LANG": "C.UTF-8"},
        encoding="utf-8",
        timeout=30,
    )

    def complete_in_terminal(line: str) -> str:
        told.unlink(missing_ok=True)
        terminal.send(f"{line}\t\r")
        for _ in range(100):
            if told.is_file() and told.read_text(encoding="utf-8").endswith("\n"):
                return told.read_text(encoding="utf-8").rstrip()
            time.sleep(0.1)
        raise AssertionError(f"{line}: {terminal.read_nonblocking(10000, timeout=1)}")

    terminal.send(f"source {script}\r")
    complete_in_terminal("tuner ready")
    yield complete_in_terminal
    terminal.close(force=True)


def test_the_tab_key(typed: Callable[[str], str]) -> None:
    assert typed("tuner prev") == "preview"
    assert typed("tuner plan --che") == "plan --check"
    assert typed("tuner model=smollm2_135m_q") == "model=smollm2_135m_q4"
    assert typed("tuner algo.schedule=cos") == "algo.schedule=cosine"
    assert typed("tuner plan algo.optim.weight_d") == "plan algo.optim.weight_decay="
    assert typed("tuner root=elsewhere chat sup") == "root=elsewhere chat support-26d8108c"
