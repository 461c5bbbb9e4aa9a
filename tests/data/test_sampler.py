import math
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.data.sampler import AUTO_TOKENS, plan_order


def test_each_epoch_sees_every_pack_once() -> None:
    order = plan_order(10, 64, seed=3, epochs=3, steps=None, batch_tokens=4 * 64)
    seen = [pack for step in range(order.steps) for pack in order.at(step)]
    assert len(seen) == 30 == order.end
    assert all(sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10)) for epoch in range(3))
    assert seen[:10] != seen[10:20]
    assert [len(order.at(step)) for step in range(order.steps)] == [4] * 7 + [2]


def test_order_is_pinned() -> None:
    assert [
        plan_order(5, 64, seed=0, epochs=1, steps=None, batch_tokens="auto").at(step) for step in range(5)
    ] == [[0], [3], [4], [1], [2]]


def test_steps_win_over_epochs() -> None:
    order = plan_order(3, 64, seed=0, epochs=1, steps=5, batch_tokens=128)
    assert order.steps == 5
    assert Counter(pack for step in range(5) for pack in order.at(step)).total() == 10


@given(packs=st.integers(1, 50_000), length=st.integers(64, 65_536), epochs=st.floats(0.01, 10))
def test_auto(packs: int, length: int, epochs: float) -> None:
    order = plan_order(packs, length, seed=0, epochs=epochs, steps=None, batch_tokens="auto")
    assert order.per_step == 1 or order.per_step * length <= AUTO_TOKENS
    assert order.steps >= min(100, order.end)
    assert (order.steps - 1) * order.per_step < order.end <= order.steps * order.per_step


@pytest.mark.parametrize("packs", [1, 3, 7, 50, 100, 300, 1000, 12_345])
def test_a_part_of_an_epoch_is_of_the_decimal_that_was_typed(packs: int) -> None:
    """100 packs, epochs=0.07: 7, where the binary product is 7.000000000000001."""
    for hundredths in range(1, 331):
        typed = Decimal(hundredths) / 100
        order = plan_order(packs, 64, seed=0, epochs=float(typed), steps=None, batch_tokens=64)
        assert order.end == order.steps == math.ceil(typed * packs), typed


def test_the_steps_of_seven_hundredths() -> None:
    order = plan_order(100, 64, seed=0, epochs=0.07, steps=None, batch_tokens=64)
    assert (order.steps, order.end) == (7, 7)
    assert plan_order(100, 64, seed=0, epochs=1e-5, steps=None, batch_tokens=64).end == 1
