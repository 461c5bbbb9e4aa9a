import math

import pytest

from tuner.train.schedule import lr_at


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
def test_formulas(steps: int, warmup: float) -> None:
    rising = math.ceil(warmup * steps)
    for step in range(steps):
        rates = {name: lr_at(step, steps, lr=0.5, schedule=name, warmup=warmup) for name in ("cosine", "linear", "constant")}
        if step < rising:
            assert set(rates.values()) == {0.5 * (step + 1) / (rising + 1)}
            continue
        x = (step - rising) / (steps - rising)
        assert rates == pytest.approx({"cosine": 0.25 * (1 + math.cos(math.pi * x)), "linear": 0.5 * (1 - x), "constant": 0.5})


def test_every_step_learns_and_the_peak_is_reached() -> None:
    for name in ("cosine", "linear"):
        rates = [lr_at(step, 50, lr=1.0, schedule=name, warmup=0.1) for step in range(50)]
        assert min(rates) > 0
        assert max(rates) == 1.0 == rates[5]
        assert rates[:6] == sorted(rates[:6])
        assert rates[5:] == sorted(rates[5:], reverse=True)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown schedule step"):
        lr_at(9, 10, lr=1.0, schedule="step", warmup=0.0)
