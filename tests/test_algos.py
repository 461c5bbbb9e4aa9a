"""The options of conf/algo: what their adapters are, and that XTuner's stay XTuner's."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config.compose import compose
from tuner.config.lora_init import alpha_of
from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.stages.train import STAGE


def scale(config: Config) -> float:
    """By which the product of an adapter is multiplied."""
    algo = config.algo
    alpha = alpha_of(algo.alpha, r=algo.r, rslora=algo.rslora)
    return alpha / (sqrt(algo.r) if algo.rslora else algo.r)


@pytest.mark.parametrize("name", ["lora", "qlora", "int8", "dora", "lora_plus"])
def test_adapters_have_rank_16_at_a_scale_of_2(name: str) -> None:
    config = compose([f"algo={name}"])
    assert (config.algo.r, config.algo.alpha, config.algo.dropout) == (16, "auto", 0.0)
    assert alpha_of(config.algo.alpha, r=16, rslora=False) == 32
    # a sweep over r keeps it
    assert [scale(compose([f"algo={name}", f"algo.r={r}"])) for r in (4, 16, 64, 256)] == [2] * 4


def test_rslora_has_rank_64_and_the_same_scale() -> None:
    config = compose(["algo=rslora"])
    assert (config.algo.r, config.algo.alpha, scale(config)) == (64, 16, 2)
    # alpha stays, and the scale follows the rank as rsLoRA says
    assert scale(compose(["algo=rslora", "algo.r=16"])) == 4


@pytest.mark.parametrize(
    ("name", "rate", "rest"), [("qlora_xtuner", 2e-4, ("nf4", 64, 16.0, 0.1)), ("full_xtuner", 2e-5, None)]
)
def test_xtuners_recipes_are_xtuners(name: str, rate: float, rest: tuple[object, ...] | None) -> None:
    algo = compose([f"algo={name}"]).algo
    assert (algo.epochs, algo.batch_tokens, algo.schedule, algo.warmup, algo.clip) == (
        3,
        32768,
        "cosine",
        0.03,
        1.0,
    )
    assert (algo.optim.name, algo.optim.lr, algo.optim.betas, algo.optim.weight_decay) == (
        "adamw",
        rate,
        (0.9, 0.999),
        0.0,
    )
    assert rest is None or (algo.quant, algo.r, algo.alpha, algo.dropout) == rest


@given(r=st.integers(1, 1024), rslora=st.booleans())
def test_auto_is_a_scale_of_2_at_every_rank(r: int, rslora: bool) -> None:
    assert alpha_of("auto", r=r, rslora=rslora) / (sqrt(r) if rslora else r) == 2
    assert alpha_of(16.0, r=r, rslora=rslora) == 16.0


@pytest.mark.parametrize("word", ["0", "-1"])
def test_alpha_is_more_than_zero(word: str) -> None:
    with pytest.raises(ConfigError, match=r"algo\.alpha is .*must be more than 0"):
        compose([f"algo.alpha={word}"])


def test_alpha_is_a_number_or_auto() -> None:
    with pytest.raises(ConfigError, match=r"algo\.alpha is 'twice', but must be a number or auto"):
        compose(["algo.alpha=twice"])


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"r": 64, "lora_alpha": 16}, "algo.r=64 algo.alpha=16$"),
        ({"r": 8, "lora_alpha": 16}, "algo.r=8$"),
        ({"r": 16, "lora_alpha": 8, "use_rslora": True}, "algo.rslora=true$"),
        ({"r": 16, "lora_alpha": 32, "use_dora": True}, "algo.dora=true$"),
    ],
)
def test_the_words_that_go_on_from_another_adapter_do(
    tmp_path: Path, there: dict[str, object], words: str
) -> None:
    """What is said is what is missing: with it, the same check passes."""
    (tmp_path / ADAPTER_FILES[0]).write_text(json.dumps(there), encoding="utf-8")
    config = compose(["algo=lora"])
    config = replace(
        config, model=replace(config.model, adapter=str(tmp_path)), algo=replace(config.algo, init="continue")
    )
    with pytest.raises(ConfigError, match=words) as found:
        STAGE.check(View(config, "train"))
    said = str(found.value).rpartition("Add: ")[2].split()
    mended = replace(compose(["algo=lora", *said]), model=config.model)
    STAGE.check(View(replace(mended, algo=replace(mended.algo, init="continue")), "train"))
