"""Verbs on a run work on what was trained, whatever became of the data and the recipe, and train nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tuner as package
from tests.conftest import ROWS, Tuner, environment, tiny_words, write_rows
from tuner.errors import ConfigError
from tuner.pipeline.run import all_runs


@pytest.fixture(scope="module")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk with a recipe, its data, and the run of it: eight steps of which the last three are kept."""
    path = tmp_path_factory.mktemp("desk")
    write_rows(path / "rows.jsonl", ROWS)
    words = [
        *tiny_words(tiny_model, path / "rows.jsonl"),
        "algo.steps=8",
        "machine.keep=3",
        "name=support",
        f"root={path}/outputs",
    ]
    subprocess.run(
        [sys.executable, "-m", "tuner", "copy", "my.yaml", *words],
        cwd=path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [sys.executable, "-m", "tuner", "my.yaml", "until=convert"],
        cwd=path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    # Afterwards somebody edits both, and moves the data away.
    (path / "my.yaml").write_text("seed: 99\n", encoding="utf-8")
    write_rows(path / "rows.jsonl", ROWS[:5])
    (path / "rows.jsonl").rename(path / "elsewhere.jsonl")
    return path


def trainings(desk: Path) -> list[str]:
    return sorted(path.name for path in (desk / "outputs/store").glob("train-*"))


def test_evaluating_converting_and_comparing_need_neither_the_data_nor_the_recipe(
    tuner: Tuner, desk: Path
) -> None:
    root, before = f"root={desk}/outputs", trainings(desk)
    assert "held-out loss" in tuner("evaluate", "support", root).out
    other = tuner("convert", "support", "convert.step=7", root)
    assert "step 7 as an adapter" in other.err
    adapters = [desk / "outputs/runs" / name / "convert/adapter_model.safetensors" for name in runs(desk)]
    assert len({path.read_bytes() for path in adapters}) == 2
    assert "convert.step" in tuner("compare", "support", "support+step7", root).out
    assert trainings(desk) == before
    status = {row["name"]: row["state"] for row in json.loads(tuner("status", "--json", root).out)["runs"]}
    assert status["support"] == "done"
    # A second time everything is there.
    again = tuner("convert", "support", "convert.step=7", root)
    assert "convert      done" in again.err


def runs(desk: Path) -> list[str]:
    return sorted(path.name for path in (desk / "outputs/runs").iterdir())


def test_the_best_step_is_the_one_with_the_lowest_held_out_loss(tuner: Tuner, desk: Path) -> None:
    (trained,) = (desk / "outputs/store").glob("train-*")
    kept = {}
    for marker in trained.glob("steps/*/state.json"):
        state = json.loads(marker.read_text(encoding="utf-8"))
        kept[state["step"]] = state["scores"]["held_out"]
    best = min(kept, key=lambda step: (kept[step], step))
    done = tuner("convert", "support", "convert.step=best", f"root={desk}/outputs")
    facts = json.loads((Path(done.out.split()[1]) / "convert/manifest.json").read_text(encoding="utf-8"))[
        "facts"
    ]
    assert facts["step"] == best
    by_loss = tuner("convert", "support", "convert.step=best", "convert.best_by=loss", f"root={desk}/outputs")
    assert "as an adapter" in by_loss.err or "done" in by_loss.err


def test_a_step_that_was_not_kept_is_named_with_those_that_were(tuner: Tuner, desk: Path) -> None:
    before = runs(desk)
    error = tuner("convert", "support", "convert.step=2", f"root={desk}/outputs", code=2).err
    assert "kept the steps" in error
    assert "7, 8" in error
    assert runs(desk) == before


@pytest.mark.parametrize(
    "word", ["algo.optim.lr=1", "data.length=32", "seed=4", "redo=train", "model.path=x"]
)
def test_what_decided_the_training_is_refused(tuner: Tuner, desk: Path, word: str) -> None:
    before = trainings(desk)
    assert "train" in tuner("evaluate", "support", word, f"root={desk}/outputs", code=2).err
    assert trainings(desk) == before


@pytest.mark.slow
def test_a_base_model_that_changed_is_said(
    tuner: Tuner, finished: Path, words: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """The base is the one thing outside the store that merging and measuring need."""
    model, root = tmp_path / "model", tmp_path / "outputs"
    shutil.copytree(tiny_model, model)
    moved = [f"model.path={model}" if word.startswith("model.path=") else word for word in words]
    tuner(f"root={root}", *moved, "algo.steps=1", "until=convert")
    (model / "config.json").write_text(
        (model / "config.json").read_text(encoding="utf-8").replace("silu", "gelu"), encoding="utf-8"
    )
    error = tuner("merge", "last", f"root={root}", code=2).err
    assert "config.json changed" in error
    assert "not what the run was trained with" in error


@pytest.mark.parametrize("line", [("chat", "last"), ("export", "last", "base", "out")], ids=" ".join)
def test_a_base_model_that_is_gone_is_said(
    tuner: Tuner, finished: Path, tmp_path: Path, line: tuple[str, ...]
) -> None:
    """A model of one's own is referred to, not copied; what needs no base is there without it."""
    root = tmp_path / "outputs"
    shutil.copytree(finished, root, symlinks=True)
    (run,) = all_runs(root)
    run.path("merge").unlink()
    config = (run.dir / "config.yaml").read_text(encoding="utf-8")
    gone = re.sub(r"(?m)^(  path: ).*/model$", rf"\g<1>{tmp_path}/nowhere", config)
    assert gone != config
    (run.dir / "config.yaml").write_text(gone, encoding="utf-8")
    error = tuner(*line, f"root={root}", code=2).err
    assert re.search("its base model is missing|The base model of .* is gone", error)
    tuner("export", "last", "adapter", "out", f"root={root}")
    assert "is not where it was" in tuner("plan", "model=run", "model.run=last", f"root={root}", code=2).err


def test_from_python(finished: Path, words: list[str], tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    shutil.copytree(finished, root, symlinks=True)
    said: list[str] = []
    run = package.run([*words, f"root={root}"], tell=said.append)
    assert [line.split()[1] for line in said] == ["done"] * 8
    assert {step.state for step in run.plan()} == {"done"}
    assert run.metrics.column("step").to_pylist() == [1, 2, 3, 4, 5, 6]
    assert run.metrics.column("held_out").to_pylist()[-1] < run.metrics.column("held_out").to_pylist()[0]
    assert (run.path("convert") / "adapter_model.safetensors").is_file()
    assert package.find(run.digest[:5], root=root).dir == run.dir
    with pytest.raises(ConfigError, match=r"algo\.optim\.lr"):
        package.run(["algo.optim.rl=1"])
