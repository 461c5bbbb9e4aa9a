"""Numbers that 32-bit floats can't hold are refused in words, before anything runs; those at the ends of
what they can are not.
"""

from dataclasses import replace

import pytest
import torch

from tuner.config.compose import compose
from tuner.config.schema import Config
from tuner.config.validate import validate
from tuner.data.sampler import plan_order
from tuner.errors import ConfigError
from tuner.models.generate import sample_token
from tuner.train.schedule import lr_at


@pytest.fixture(scope="module")
def default() -> Config:
    return compose([])


def of_algo(config: Config, **values: object) -> Config:
    return replace(config, algo=replace(config.algo, **values))  # type: ignore[arg-type]


def of_optim(config: Config, **values: object) -> Config:
    return of_algo(config, optim=replace(config.algo.optim, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"alpha": 1e308},
            r"algo\.alpha is 1e\+308, but training uses 32-bit floats, and the largest is 3\.4e\+38",
        ),
        ({"alpha": 3.5e38}, r"algo\.alpha is 3\.5e\+38"),
        (
            {"alpha": 1e-320},
            r"algo\.alpha is .*, but training uses 32-bit floats, and the smallest above 0 is",
        ),
        (
            {"alpha": 2e-38, "r": 16},
            (
                r"the adapters' scale, alpha / r of algo\.alpha=2e-38 and algo\.r=16, is 1\.25e-39, but"
                r" training uses 32-bit floats, and the smallest"
            ),
        ),
        ({"alpha": 2e-38, "r": 16, "rslora": True}, r"the adapters' scale, alpha / √r .* is 5e-39"),
        ({"r": 10**400}, r"which is wider than any layer"),
        ({"clip": 1e308}, r"algo\.clip is 1e\+308"),
        ({"clip": 1e-300}, r"algo\.clip is 1e-300, but training uses 32-bit floats, and the smallest"),
        ({"neftune": 1e300}, r"algo\.neftune is 1e\+300"),
        ({"lora_plus": 1e308}, r"algo\.lora_plus is 1e\+308"),
        (
            {"lora_plus": 1e38, "lr": 100.0},
            r"the rate of B, algo\.lora_plus=1e\+38 times algo\.optim\.lr=100\.0, is 1e\+40",
        ),
        ({"lr": 1e308}, r"algo\.optim\.lr is 1e\+308"),
        ({"lr": 1e-310}, r"algo\.optim\.lr is 1e-310, but training uses 32-bit floats, and the smallest"),
        ({"eps": 1e308}, r"algo\.optim\.eps is 1e\+308"),
        ({"eps": 1e-60}, r"algo\.optim\.eps is 1e-60, but training uses 32-bit floats, and the smallest"),
        ({"weight_decay": 1e308}, r"algo\.optim\.weight_decay is 1e\+308"),
        (
            {"weight_decay": 1e30, "lr": 1e30},
            r"algo\.optim\.weight_decay=1e\+30 times algo\.optim\.lr=1e\+30 is 1e\+60",
        ),
        ({"weight_decay": -1.0}, r"algo\.optim\.weight_decay is -1\.0, but must be at least 0"),
        ({"betas": (-0.5, 0.9)}, r"algo\.optim\.betas is -0\.5, but must be at least 0 and less than 1"),
        ({"betas": (0.9, 1.0)}, r"algo\.optim\.betas is 1\.0, but must"),
    ],
)
def test_beyond_them_is_refused(default: Config, values: dict[str, object], says: str) -> None:
    of = {name: value for name, value in values.items() if name in ("lr", "eps", "weight_decay", "betas")}
    config = of_algo(
        of_optim(default, **of), **{name: value for name, value in values.items() if name not in of}
    )
    with pytest.raises(ConfigError, match=says) as told:
        validate(config)
    assert "attention" not in str(told.value)


@pytest.mark.parametrize("seconds", [1e308, 1e13])
def test_a_timeout_that_no_clock_has(default: Config, seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"machine\.timeout is 1e\+\d+, but must be at most 1e\+09 seconds"):
        validate(replace(default, machine=replace(default.machine, timeout=seconds)))


def test_what_people_write_is_not_refused(default: Config) -> None:
    for values in (
        {"alpha": 1e-3, "r": 256},
        {"alpha": 1024.0, "r": 1},
        {"alpha": "auto"},
        {"clip": None},
        {"clip": 1e6},
        {"neftune": 5.0},
        {"lora_plus": 16.0},
    ):
        validate(of_algo(default, **values))
    for values in (
        {"lr": 1e-9},
        {"lr": 10.0},
        {"eps": 1e-30},
        {"eps": 1.0},
        {"weight_decay": 0.0},
        {"weight_decay": 10.0},
        {"betas": (0.0, 0.0)},
    ):
        validate(of_optim(default, **values))


def test_numbers_that_training_does_not_round_to_32_bits_may_be_any(default: Config) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    random = torch.Generator().manual_seed(0)
    assert sample_token(logits, temperature=1e-308, top_p=1.0, random=random) == 1
    assert sample_token(logits, temperature=1e308, top_p=1.0, random=random) in (0, 1, 2)
    order = plan_order(240, 512, seed=0, epochs=1e30, steps=None, batch_tokens="auto")
    assert order.steps > 10**20
    assert 0 <= lr_at(0, order.steps, lr=1e-4, schedule="cosine", warmup=1e300, decay=0.1) <= 1e-4
    validate(of_algo(default, warmup=1e300, epochs=1e30))
