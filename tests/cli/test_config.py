"""`config`: the composed config, and the fields that there are."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import Tuner
from tuner.cli.config_text import config_text, fields_text
from tuner.config.compose import compose
from tuner.config.recipes import read_recipe
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError

LINES = [
    [],
    ["algo=qlora", "data=oasst1", "algo.optim.lr=1e-4"],
    ["model=hub", "model.repo=org/name", "model/chat=qwen3", "data=local", "data.path=客服/2026(1).jsonl"],
    ["data=mix", "data.of={alpaca: 100, oasst1: 0.5}"],
    ["algo=full", "tags=[a,b]", 'note=it\'s # "mine"'],
    ["eval.prompts=[What is it?,Why: so]", "machine.gpus=[0,1]"],
]


@pytest.mark.parametrize("words", LINES)
def test_what_is_printed_is_a_recipe_that_means_the_same(words: list[str], tmp_path: Path) -> None:
    config = compose(words)
    file = tmp_path / "printed.yaml"
    file.write_text(config_text(config), encoding="utf-8")
    assert compose(read_recipe(file)) == config


def test_what_differs_is_marked_with_what_it_is_by_default() -> None:
    lines = config_text(compose(["algo.optim.lr=1e-4", "note=mine"])).splitlines()
    assert [line.strip() for line in lines if "  # " in line] == [
        "note: mine  # null",
        "lr: 0.0001  # 0.0002",
    ]


def test_all_fields_are_there_with_what_each_decides(tuner: Tuner) -> None:
    told = tuner("config", "--fields").out
    for path, _, _ in leaves(Config()):
        assert f"\n{path} = " in f"\n{told}"
    (lr,) = [part for part in told.split("\n\n") if part.startswith("algo.optim.lr")]
    assert lr.splitlines() == [
        "algo.optim.lr = 0.0002    a number",
        "    the peak learning rate, reached after the warm-up",
        "    decides what train makes",
    ]


def test_fields_are_found_by_their_name_or_their_text() -> None:
    assert fields_text(["LR"]).startswith("algo.optim.lr")
    assert "machine.parse_memory" not in fields_text(["lr"])
    assert "algo.optim.lr = " in fields_text(["peak"])
    with pytest.raises(
        ConfigError, match=r"no field's name .* has algo.optim.lrr. Did you mean algo.optim.lr"
    ):
        fields_text(["algo.optim.lrr"])


def test_through_the_front_door(tuner: Tuner) -> None:
    printed = yaml.safe_load(tuner("config", "algo=full", "seed=3").out)
    assert printed["seed"] == 3
    assert {"algo": "full"} in printed["defaults"]
    assert "config --fields lr shows" in tuner("config", "lr", code=2).err
