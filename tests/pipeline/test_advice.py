"""A command that is printed works when it is pasted, wherever the runs are."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import Tuner
from tuner.cli.parse import parse
from tuner.config.compose import compose
from tuner.pipeline.advice import command, command_on
from tuner.pipeline.run import RunDirectory

MODEL = "defaults:\n  - chat: chatml\n  - _self_\nsource: path\npath: b\n"


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A finished run under a root that has to be quoted."""
    copy = tmp_path / "two words (客服)"
    shutil.copytree(finished, copy, symlinks=True)
    return copy


def pasted(text: str) -> list[str]:
    """The words of the last command in a text."""
    found = re.findall(r"python -m tuner (.*)", text)
    return shlex.split(found[-1])


def lose(root: Path, *stages: str) -> None:
    """Remove what stages made, and the run's links to it."""
    (run,) = (root / "runs").iterdir()
    for stage in stages:
        shutil.rmtree((run / stage).resolve())
        (run / stage).unlink()


def test_what_a_start_from_a_run_proposes_makes_what_it_lacks(
    tuner: Tuner, root: Path, words: list[str]
) -> None:
    lose(root, "merge")
    line = ["plan", "model=run", "model.run=last", f"root={root}", *words[2:]]
    refused = tuner(*line, code=2)
    assert "has no merge to start from" in refused.err
    tuner(*pasted(refused.err))
    assert tuner(*line).out.startswith("plan for")


def test_what_export_proposes_exports(tuner: Tuner, root: Path, tmp_path: Path) -> None:
    tuner("export", "last", "adapter", f"root={root}")
    again = tuner("export", "last", "adapter", f"root={root}", code=2)
    assert "Name another directory" in again.err
    tuner(*(str(tmp_path / "taken") if word == "DIR" else word for word in pasted(again.err)))
    assert (tmp_path / "taken" / "adapter_config.json").is_file()


def test_what_an_empty_root_proposes_is_for_that_root(tuner: Tuner, tmp_path: Path) -> None:
    place = tmp_path / "nothing here"
    for said in (
        tuner("status", f"root={place}").out,
        tuner("chat", "last", f"root={place}", code=2).err,
        tuner("chat", "last", code=2).err.replace("python -m tuner", "python -m tuner root=outputs"),
    ):
        line = parse(pasted(said))
        assert compose(line.words).root in (str(place), "outputs")


def test_a_recipe_from_ones_own_options_names_them(tuner: Tuner, tmp_path: Path) -> None:
    mine = tmp_path / "my options"
    for group, text in (("data", "source: path\npath: a.jsonl\n"), ("model", MODEL)):
        (mine / group).mkdir(parents=True)
        (mine / group / "mine.yaml").write_text(f"# mine\n{text}", encoding="utf-8")
    copied = tuner("-cd", str(mine), "copy", "my recipe.yaml", "data=mine", "model=mine")
    words = pasted(copied.out)
    assert words == ["-cd", str(mine), "my recipe.yaml"]
    shown = tuner("config", *words).out
    assert "  - data: mine" in shown
    assert "  - model: mine" in shown
    assert pasted((tmp_path / "my recipe.yaml").read_text(encoding="utf-8").splitlines()[0]) == words


def test_a_verb_in_the_wrong_place_takes_the_rest_of_the_line_with_it(tuner: Tuner, root: Path) -> None:
    refused = tuner("last", "config", f"root={root}", "--fields", code=2)
    assert pasted(refused.err) == ["config", "last", f"root={root}", "--fields"]


def test_a_run_that_lies_under_no_root_is_called_by_its_path() -> None:
    assert command_on(RunDirectory(Path("a b/moved")), "chat") == "python -m tuner chat 'a b/moved'"
    assert (
        command_on(RunDirectory(Path("outputs/runs/x-12345678")), "chat") == "python -m tuner chat 12345678"
    )
    line = command("clean", root="/r", store="/s t")
    assert shlex.split(line)[4:] == ["root=/r", "store=/s t"]
