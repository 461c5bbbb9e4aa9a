"""tuner from Python: the words of the command line, its verbs on runs, and values that can be worked with."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tuner
from tests.conftest import environment
from tuner.errors import ConfigError, StageError
from tuner.files import write_text


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


@pytest.fixture
def recipe(words: list[str], tmp_path: Path) -> Path:
    """The tiny run as a person's YAML."""
    path = next(word for word in words if word.startswith("data.path="))
    model = next(word for word in words if word.startswith("model.path="))
    write_text(
        tmp_path / "my.yaml",
        "defaults:\n  - model: local\n  - data: local\n  - machine: cpu\n"
        f"model: {{path: '{model.partition('=')[2]}'}}\n"
        f"data: {{path: '{path.partition('=')[2]}', length: 64}}\n"
        "name: mine\n",
    )
    return tmp_path / "my.yaml"


def test_the_module_shows_what_it_can_do() -> None:
    code = "import tuner; print(*dir(tuner)); tuner.run.__doc__.index('recipes')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    shown = done.stdout.split()
    assert {name for name in shown if not name.startswith("__")} == set(tuner.__all__)
    assert {"run", "plan", "merge", "evaluate", "compare", "status", "find"} < set(shown)
    for name in tuner.__all__:
        assert getattr(tuner, name).__doc__


def test_recipes_and_words_as_on_the_command_line(recipe: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = tuner.run([recipe, "until=fetch", f"root={tmp_path}/out"], tell=said.append)
    assert run.name == "mine"
    assert run.path("fetch_data").is_dir()
    assert any(line.startswith("fetch_data   done in") for line in said)
    # the same line as a string, which is taken apart as a shell would
    again = tuner.run(f"{recipe} 'root={tmp_path}/out' until=fetch", tell=said.append)
    assert again.dir == run.dir
    assert [step for step in tuner.plan([recipe, f"root={tmp_path}/out", "algo.steps=3"])][:3] == [
        ("fetch_data", "done", ""),
        ("fetch_model", "done", ""),
        ("tokenize", "run", "never made"),
    ]
    assert run.config.data.length == 64
    with pytest.raises(ConfigError, match=r"plan is a function in Python: tuner\.plan"):
        tuner.run(["plan", recipe])
    with pytest.raises(ConfigError, match="--json is an option of the command line's output"):
        tuner.plan(["--json"])


def test_a_sweep_returns_its_runs(words: list[str], tmp_path: Path) -> None:
    line = [*words, f"root={tmp_path}/out", "-m", "seed=1,2"]
    plans = tuner.plan(line)
    assert [{step.state for step in job} for job in plans] == [{"run", "skip"}] * 2
    runs = tuner.run([*line, "until=tokenize"], tell=lambda _: None)
    assert len({run.dir for run in runs}) == 2
    assert len({run.path("tokenize").resolve() for run in runs}) == 1
    path = next(word for word in words if word.startswith("data.path=")).partition("=")[2]
    broken = [*words, f"root={tmp_path}/out", "-m", f"data.path='{path}',missing.jsonl", "until=fetch"]
    with pytest.raises(StageError, match=r"1 of 2 jobs failed, the others are done\. .*missing\.jsonl"):
        tuner.run(broken, tell=lambda _: None)


def test_verbs_on_a_run(root: Path, tmp_path: Path) -> None:
    run = tuner.find("last", root=root)
    (row,) = tuner.status(root=root)
    assert (row["run"], row["state"]) == (run.dir.name, "done")
    assert run.metrics.column("step").to_pylist() == list(range(1, 7))
    assert run.report["held_out"]["loss"]["after"] == row["held_out_after"]
    for verb in (tuner.convert, tuner.merge, tuner.evaluate):
        assert verb(run).dir == run.dir
    out = tuner.export(run, "adapter", tmp_path / "away")
    assert (out / "adapter_config.json").is_file()
    with pytest.raises(ConfigError, match="is finished: there is nothing to stop"):
        tuner.stop(run)
    shutil.copytree(run.dir, run.dir.with_name("other-00000001"), symlinks=True)
    assert tuner.compare(run, "other", root=root)["differing"] == []
    assert tuner.rename(run, "support").name == "support"
    assert tuner.find("support", root=root).digest == run.digest


def test_what_is_not_there_is_said(root: Path) -> None:
    run = tuner.find(root=root)
    with pytest.raises(ConfigError, match=r"'mrge' is no stage of a run\. Did you mean merge\?"):
        run.path("mrge")
    (run.dir / "merge").unlink()
    with pytest.raises(ConfigError, match=r"has no merge yet; tuner\.merge\(run\) makes it"):
        run.path("merge")
    assert tuner.merge(run).path("merge").is_dir()
    (run.dir / "train").unlink()
    with pytest.raises(ConfigError, match="has no train yet: the run did not come so far"):
        run.path("train")
