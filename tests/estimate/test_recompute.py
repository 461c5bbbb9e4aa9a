"""What a run chooses where micro_batch and recompute are auto: the fastest that fits, by a formula."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.estimate.recompute import NOTHING, Recompute, Setting, first_that_fits, settings


def chosen(**given: Any) -> list[Setting]:
    return settings(
        **{
            "layers": 24,
            "packs": 16,
            "length": 2048,
            "micro": "auto",
            "recompute": "auto",
            "memory": "auto",
            "compiled": True,
        }
        | given
    )


def test_with_room_the_gpu_is_filled_and_nothing_recomputed() -> None:
    assert chosen()[0].micro == 8  # 16,384 tokens
    assert chosen()[0].recompute == NOTHING


def test_the_order_trades_time_for_memory() -> None:
    """With 10 bytes a pack, of which all are gone when blocks are computed again and 3 with norms."""

    def needed(one: Setting) -> float:
        kept = 7 if one.recompute.norms else 10
        return 5 + one.micro * (kept * (24 - one.recompute.blocks) + one.recompute.blocks) / 24

    found = [first_that_fits(chosen(), needed, room) for room in (85, 61, 40, 20, 12, 6, 5)]
    words = [one.words(24) if one else None for one in found]
    assert words == [
        "machine.micro_batch=8 machine.recompute=none",
        "machine.micro_batch=8 machine.recompute=norms",
        "machine.micro_batch=4 machine.recompute=norms",
        "machine.micro_batch=2 machine.recompute=norms",
        "machine.micro_batch=1 machine.recompute=norms",
        "machine.micro_batch=1 machine.recompute=blocks",
        None,
    ]


@pytest.mark.parametrize(
    ("given", "micros", "kinds"),
    [
        ({"memory": "small"}, {1}, {"blocks"}),
        ({"memory": "fast"}, {1, 2, 3, 4, 6, 8}, {"none"}),
        ({"micro": 3, "recompute": 5}, {3}, {5}),
        ({"micro": 99, "recompute": 99}, {16}, {"blocks"}),
        ({"recompute": "norms", "compiled": False, "micro": 2}, {2}, {"none"}),
        ({"memory": "small", "micro": 4, "recompute": "none"}, {4}, {"none"}),
        ({"compiled": False, "length": 99_999}, {1}, {"none", *range(1, 24), "blocks"}),
    ],
)
def test_what_the_config_says_is_kept(given: dict[str, Any], micros: set[int], kinds: set[object]) -> None:
    found = chosen(**given)
    assert {one.micro for one in found} == micros
    assert {one.recompute.said(24) for one in found} == kinds


@given(st.integers(1, 40), st.integers(1, 5000), st.booleans())
def test_costs_rise_with_what_is_computed_again(packs: int, length: int, compiled: bool) -> None:
    found = chosen(packs=packs, length=length, compiled=compiled, layers=3)
    by = {(one.micro, one.recompute.said(3)): one.cost for one in found}
    for micro in {one.micro for one in found}:
        costs = [by[micro, said] for said in ("none", 1, 2, "blocks")]
        assert costs == sorted(set(costs))
        assert costs[0] >= 1
    assert all(one.cost <= other.cost for one, other in itertools.pairwise(found))


def test_layers_that_keep_only_their_input_are_the_first() -> None:
    assert Recompute.read(2, 24, compiled=False) == Recompute(blocks=2)
    assert Recompute.read("norms", 24, compiled=False) == NOTHING
