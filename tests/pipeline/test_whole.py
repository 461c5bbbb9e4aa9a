"""What vanishes while a stage runs is not published as if it had never been."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Tuner, reasons, states
from tests.pipeline.test_execute import built, config, look, run, stages
from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import StageError
from tuner.pipeline.inherit import load_config
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.stage import Context, Stage
from tuner.pipeline.whole import lacking
from tuner.stages import STAGES

__all__ = ["built", "config", "stages"]  # fixtures


def empty_again(out: Path) -> None:
    shutil.rmtree(out)
    out.mkdir()


def write_nowhere(out: Path) -> None:
    shutil.rmtree(out)
    (out / "more").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda out: (out / "text").unlink(), "text is missing"),
        (shutil.rmtree, "was removed"),
        (empty_again, "was removed"),
        (write_nowhere, "was removed"),
    ],
)
def test_what_vanished_meanwhile_is_said_and_made_again(
    happens: Callable[[Path], object], words: str, config: Config, stages: list[Stage]
) -> None:
    whole = stages[1].run

    def robbed(ctx: Context) -> dict[str, object]:
        facts = whole(ctx)
        happens(ctx.out)
        return facts

    robbing = [stages[0], replace(stages[1], run=robbed, must_have=lambda *_: ("text",)), *stages[2:]]
    with pytest.raises(StageError, match=f"What tokenize made is not whole: .*{words}"):
        run(config, robbing)
    assert not list(store_of(config).root.glob("tokenize-*"))
    run(config, stages)
    assert look(config, stages)["tokenize"][0] == "done"


def test_every_stage_says_what_it_must_leave(finished: Path, tmp_path: Path) -> None:
    (directory,) = (finished / "runs").iterdir()
    settings = load_config(RunDirectory(directory))
    for stage in STAGES:
        artifact = (directory / stage.name).resolve()
        facts = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["facts"]
        view = View(settings, stage.name)
        names = list(stage.must_have(view, artifact, facts))
        assert lacking(stage, view, artifact, facts) is None
        assert bool(names) == (not stage.references(view)), stage.name
        for name in names:
            robbed = shutil.copytree(artifact, tmp_path / stage.name, dirs_exist_ok=True)
            (robbed / name).unlink()
            assert lacking(stage, view, robbed, facts), f"{stage.name} without {name}"


def test_an_artifact_that_was_published_with_less_is_made_again(
    tuner: Tuner, words: list[str], finished: Path, tmp_path: Path
) -> None:
    """As it was done before stages said what they must leave: the manifest knows nothing of the file."""
    root = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    (artifact,) = (root / "store").glob("convert-*")
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["adapter_config.json"]
    (artifact / "adapter_config.json").unlink()
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    planned = tuner("plan", "--json", f"root={root}", *words)
    assert states(planned)["convert"] == "run"
    assert "adapter_config.json is missing" in reasons(planned)["convert"]
