"""What is proposed in place of another tool's words is there, and can be typed."""

from pathlib import Path

import pytest

from tests.conftest import Tuner
from tuner.config.build import field_paths
from tuner.config.compose import compose, group_options
from tuner.config.other_names import CHOICES, NAMES, WORDS, our_field, ours_for
from tuner.config.overrides import translate
from tuner.errors import ConfigError


def test_each_name_means_one_field_that_there_is() -> None:
    known = field_paths()
    assert NAMES.keys() <= known.keys()
    assert WORDS.keys() <= NAMES.keys()
    assert CHOICES.keys() <= group_options().keys()
    names = " ".join([*NAMES.values(), *CHOICES.values()]).split()
    assert len(names) == len(set(names))
    for name in names:
        assert name not in known, f"{name} is a field itself"


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("lr=1e-4", "algo.optim.lr"),
        ("algo.lr=1e-4", "algo.optim.lr"),
        ("epochs=3", "algo.epochs"),
        ("trainer.max_epochs=3", "algo.epochs"),
        ("lora_r=8", "algo.r"),
        ("cutoff_len=1024", "data.length"),
        ("weight_decay=0.1", "algo.optim.weight_decay"),
    ],
)
def test_the_field_is_named_and_takes_the_value(word: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"Here it is {field}\."):
        translate([word], group_options(), sweep=False)
    compose([f"{field}={word.partition('=')[2]}"])


def test_a_part_that_several_fields_share_is_not_guessed() -> None:
    assert our_field("path", ["data.path", "model.path"]) is None
    assert ours_for("nothing_like_it", field_paths()) == ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["model=Qwen/Qwen2.5-0.5B-Instruct"], "model=hub model.repo=Qwen/Qwen2.5-0.5B-Instruct"),
        (["data=org/rows"], "data=hub data.repo=org/rows"),
    ],
)
def test_what_a_hub_has_is_told_from_a_path(words: list[str], hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(words)
    assert str(refused.value).endswith(f". For what a hub has write {hint}")
    compose(hint.split())


def test_a_path_that_is_there_and_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"write data=local data.path={tmp_path}/rows.jsonl$"):
        compose([f"data={tmp_path}/rows.jsonl"])
    with pytest.raises(ConfigError, match=r"model\.path=\./nothing, but that is not there"):
        compose(["model=./nothing"])


def test_a_misspelt_member_of_a_list_is_named() -> None:
    with pytest.raises(ConfigError, match=r"holds 'tensorbord', but .*Did you mean tensorboard\?"):
        compose(["machine.trackers=[wandb,tensorbord]"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--epochs=3"], "Fields are set without dashes: algo.epochs=3."),
        (["--learning-rate", "1e-4"], "Fields are set without dashes: algo.optim.lr=1e-4."),
        (["plan", "--chekc"], "Did you mean --check?"),
        (["--cfg", "job"], "python -m tuner config shows the composed config."),
        (["--info", "defaults"], "python -m tuner config shows what a config is composed of"),
        (["hydra.run.dir=x"], "hydra.run.dir=x does nothing here."),
        (["-m", "hydra.job.name=x", "seed=1,2"], "hydra.job.name=x does nothing here."),
        (["last", "chat"], "the verb comes first: python -m tuner chat last"),
        (["train", "mine.yaml", "seed=1"], "is called run here: python -m tuner run mine.yaml seed=1"),
        (["mine.yml"], "mine.yml is not there. Did you mean mine.yaml?"),
    ],
)
def test_a_line_is_put_right(line: list[str], said: str, tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert said in tuner(*line, code=2).err
