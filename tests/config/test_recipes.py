"""Recipes: what `copy` writes, `tuner FILE` reads; and a recipe from a stranger can't reach Hydra."""

from itertools import pairwise
from pathlib import Path

import pytest

from tuner.config.compose import check_directory, compose
from tuner.config.recipes import field_documentation, read_recipe, write_recipe
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError


def test_a_copy_composes_to_the_same_config(tmp_path: Path) -> None:
    awkward = "a, 'b' \"c\" # d: [e] ${f} 客服"
    words = [
        "algo=full",
        "data=local",
        "data.path=[x y.jsonl,客.jsonl]",
        f"data.system={awkward}",
        "algo.optim.lr=3e-5",
        'data.fill.name=金, "x"',
        "eval.prompts=['Who, me?',你是谁？]",
        "algo.clip=null",
    ]
    config = compose(words)
    write_recipe(tmp_path / "my.yaml", config)
    assert compose(read_recipe(tmp_path / "my.yaml")) == config
    with pytest.raises(ConfigError, match="does not overwrite"):
        write_recipe(tmp_path / "my.yaml", config)


def test_words_after_the_recipe_win(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "defaults:\n  - algo: full\n  - model/chat: chatml\nalgo:\n  optim:\n    lr: 1e-4\nseed: 7\n",
        encoding="utf-8",
    )
    config = compose([*read_recipe(tmp_path / "r.yaml"), "seed=8"])
    assert (config.algo.adapter, config.algo.optim.lr, config.seed) == ("none", 1e-4, 8)


@pytest.mark.parametrize(
    "text",
    [
        "hydra:\n  job:\n    env_set: {LD_PRELOAD: /tmp/x.so}\n",
        "defaults:\n  - override hydra/launcher: joblib\n",
        "defaults:\n  - hydra/job_logging: x\n",
        "model:\n  _target_: os.system\n",
        "algo:\n  optim:\n    lr: ${oc.env:HF_TOKEN}\n",
        "note: a ${oc.decode:x} b\n",
        "hydra.job.env_set: {A: b}\n",
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="may not reach Hydra"):
        read_recipe(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="may not reach Hydra"):
        check_directory(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", "must be a mapping"),
        ("a: [\n", "can't be read as YAML"),
        ("defaults:\n  - modell: x\n", "Did you mean model"),
        ("defaults:\n  - model\n", "a group and its option"),
        ("alog:\n  r: 3\n", "Did you mean algo.r"),
        ("!!python/object/apply:os.system [id]\n", "can't be read as YAML"),
        ("x: &a\n  y: *a\n", "r.yaml:1 contains itself"),
        ("[" * 5000, "r.yaml:1 is nested deeper than 40 levels"),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested deeper"),
        (
            "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")),
            r"with its aliases written out it has 4\.\de\+08 values",
        ),
        ("x: '" + "y" * (1 << 20) + "'\n", "1,048,582 characters"),
        ("x: \udcff\n", "can't be read as YAML"),
    ],
)
def test_broken_recipes(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=says):
        compose(read_recipe(tmp_path / "r.yaml"))


def test_aliases_of_a_person_are_read(tmp_path: Path) -> None:
    text = "name: &word mine\nnote: *word\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    assert compose(read_recipe(tmp_path / "r.yaml")).note == "mine"


def test_own_directory_wins_and_adds(tmp_path: Path) -> None:
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "tiny.yaml").write_text("# mine\nadapter: lora\nr: 2\n", encoding="utf-8")
    (tmp_path / "algo" / "full.yaml").write_text("# mine\nadapter: none\nepochs: 9\n", encoding="utf-8")
    assert compose(["algo=tiny"], extra=tmp_path).algo.r == 2
    assert compose(["algo=full"], extra=tmp_path).algo.epochs == 9


def test_a_model_of_ones_own_names_a_chat_template(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "own.yaml"
    place = "source: path\npath: /models/own\n"
    file.write_text(place, encoding="utf-8")
    with pytest.raises(ConfigError, match="model=own chooses no chat template: begin its YAML") as told:
        compose(["model=own"], extra=tmp_path)
    advice = str(told.value).split("`")[1]
    with pytest.raises(ConfigError, match="model/chat can't be chosen, since the YAML of this model") as also:
        compose(["model=own", "model/chat=qwen3"], extra=tmp_path)
    assert str(also.value).split("`")[1] == advice
    file.write_text(f"{advice}\n{place}", encoding="utf-8")
    assert compose(["model=own"], extra=tmp_path).model.chat.auto
    assert compose(["model=own", "model/chat=qwen3"], extra=tmp_path).choices["model/chat"] == "qwen3"


def test_every_field_is_documented() -> None:
    docs = dict(field_documentation(Config))
    assert not [path for path, _, _ in leaves(Config()) if not docs[path]]
