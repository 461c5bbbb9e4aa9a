import math
from decimal import Decimal

import pytest

from tuner.train.schedule import lr_at

NAMES = ("cosine", "linear", "constant", "wsd")


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
def test_formulas(steps: int, warmup: float) -> None:
    rising = math.ceil(warmup * steps)
    for step in range(steps):
        rates = {
            name: lr_at(step, steps, lr=0.5, schedule=name, warmup=warmup)
            for name in ("cosine", "linear", "constant")
        }
        if step < rising:
            assert set(rates.values()) == {0.5 * (step + 1) / (rising + 1)}
            continue
        x = (step - rising) / (steps - rising)
        assert rates == pytest.approx(
            {"cosine": 0.25 * (1 + math.cos(math.pi * x)), "linear": 0.5 * (1 - x), "constant": 0.5}
        )


def test_every_step_learns_and_the_peak_is_reached() -> None:
    for name in ("cosine", "linear", "wsd"):
        rates = [lr_at(step, 50, lr=1.0, schedule=name, warmup=0.1) for step in range(50)]
        assert min(rates) > 0
        assert max(rates) == 1.0 == rates[5]
        assert rates[:6] == sorted(rates[:6])
        assert rates[5:] == sorted(rates[5:], reverse=True)
        assert [lr_at(step, 50, lr=1.0, schedule=name, warmup=0.1) for step in (50, 60)] == pytest.approx(
            [0, 0], abs=1e-12
        )


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_by_steps_is_warm_up_by_their_share(name: str) -> None:
    for steps in (4, 20, 33):
        for rising in (1, 2, 4):
            by_steps, by_share = (
                [lr_at(s, steps, lr=1.0, schedule=name, warmup=w) for s in range(steps)]
                for w in (rising, rising / steps - 1e-9)
            )
            assert by_steps == (by_share if rising < steps else [(s + 1) / (steps + 1) for s in range(steps)])


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    assert [lr_at(step, 4, lr=1.0, schedule="cosine", warmup=100) for step in range(4)] == [
        0.2,
        0.4,
        0.6,
        0.8,
    ]


@pytest.mark.parametrize("decay", [0.1, 0.25, 0.5])
def test_wsd_stays_and_then_falls_straight_to_zero(decay: float) -> None:
    rates = [lr_at(step, 40, lr=2.0, schedule="wsd", warmup=4, decay=decay) for step in range(41)]
    begin = 40 - round(40 * decay)
    assert set(rates[4 : begin + 1]) == {2.0}
    falls = {round(a - b, 9) for a, b in zip(rates[begin:-1], rates[begin + 1 :], strict=True)}
    assert falls == {round(2.0 / (40 * decay), 9)}
    assert rates[40] == 0


def test_wsd_that_only_falls_is_linear() -> None:
    for step in range(30):
        rates = [lr_at(step, 30, lr=1.0, schedule=name, warmup=0.2, decay=1.0) for name in ("wsd", "linear")]
        assert rates[0] == rates[1]


def test_wsd_up_to_its_decay_does_not_depend_on_the_length() -> None:
    """What a training that is made longer goes on from."""
    short, long = (
        [lr_at(step, steps, lr=1.0, schedule="wsd", warmup=5) for step in range(90)] for steps in (100, 1000)
    )
    assert short == long


@pytest.mark.parametrize("steps", [50, 100, 300, 1000])
def test_shares_of_steps_are_of_the_decimals_that_were_typed(steps: int) -> None:
    """0.07 of 100 steps are 7, where the binary product is 7.000000000000001."""
    for hundredths in range(1, 100):
        typed = Decimal(hundredths) / 100
        rising = math.ceil(typed * steps)
        by_share, by_steps = (
            [lr_at(s, steps, lr=1.0, schedule="cosine", warmup=w) for s in range(steps)]
            for w in (float(typed), rising)
        )
        assert by_share == by_steps, typed
        rates = [
            lr_at(s, steps, lr=1.0, schedule="wsd", warmup=0.0, decay=float(typed)) for s in range(steps)
        ]
        # the first step of the fall is still at the full rate
        assert rates.count(1.0) - 1 == steps - rising, typed


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown schedule step"):
        lr_at(9, 10, lr=1.0, schedule="step", warmup=0.0)
