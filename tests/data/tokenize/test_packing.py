import random
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.shares import round_of
from tuner.data.tokenize.packing import draw_held_out, draw_rows, pack, shuffled

LENGTHS = st.lists(st.integers(1, 50), max_size=80)


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 5))
def test_every_document_is_in_one_pack_whole(lengths: list[int], seed: int) -> None:
    packs = pack(lengths, 50, seed)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= 50 for members in packs)
    assert all(members == sorted(members) for members in packs)
    assert packs == pack(lengths, 50, seed)


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_no_two_packs_are_half_empty(lengths: list[int]) -> None:
    fills = [sum(lengths[i] for i in members) for members in pack(lengths, 50, 0)]
    assert sum(fill <= 25 for fill in fills) <= 1


def test_the_best_fit_is_taken() -> None:
    assert sorted(pack([5, 3, 7, 2], 10, 0)) == [[0, 3], [1, 2]]
    assert sorted(pack([6, 4, 5, 5], 10, 0)) == [[0, 1], [2, 3]]


def test_the_seed_orders_the_packs_and_nothing_else() -> None:
    lengths = [i % 37 + 1 for i in range(500)]
    assert pack(lengths, 64, 0) != pack(lengths, 64, 1)
    assert sorted(pack(lengths, 64, 0)) == sorted(pack(lengths, 64, 1))


def test_a_document_longer_than_a_pack_is_a_bug() -> None:
    with pytest.raises(ValueError, match="document 1 has 11 tokens"):
        pack([3, 11], 10, 0)


CONTENTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), max_size=120)
"""for each content, how many rows hold it, and their tokens"""


def drawn(contents: Sequence[tuple[int, int]], share: float | Literal["auto"], seed: int = 0) -> list[int]:
    return draw_held_out(
        range(len(contents)),
        [rows for rows, _ in contents],
        [rows * size for rows, size in contents],
        share,
        seed,
    )


@given(rows=st.integers(0, 300), share=st.floats(0, 0.999), seed=st.integers(0, 5))
def test_held_out_is_a_share_never_all(rows: int, share: float, seed: int) -> None:
    chosen = drawn([(1, 1)] * rows, share, seed)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(rows))
    if share > 0 and rows >= 2:
        assert 1 <= len(chosen) < rows
        assert abs(len(chosen) - rows * share) <= 1
    else:
        assert chosen == []


@given(contents=CONTENTS, share=st.floats(0.001, 0.999), seed=st.integers(0, 5))
def test_the_share_is_of_rows_however_often_a_content_stands_there(
    contents: list[tuple[int, int]], share: float, seed: int
) -> None:
    """Of 180 rows that stand three times each, 0.2 holds out 36, not 87."""
    chosen, total = set(drawn(contents, share, seed)), sum(rows for rows, _ in contents)
    if len(contents) < 2:
        assert not chosen
        return
    wanted = min(max(1, round_of(total, share)), total - 1)
    count, least = sum(contents[i][0] for i in chosen), min(rows for rows, _ in contents)
    assert 0 < count < total
    assert count <= max(wanted, least)
    # what is missing to the share would hold no other
    assert all(count + contents[i][0] > wanted for i in set(range(len(contents))) - chosen)


@given(contents=CONTENTS, more=CONTENTS, share=st.floats(0.01, 0.5))
def test_rows_that_are_added_at_the_end_move_few_others(
    contents: list[tuple[int, int]], more: list[tuple[int, int]], share: float
) -> None:
    single = [(1, size) for _, size in contents]
    before, after = set(drawn(single, share)), set(drawn(single + [(1, size) for _, size in more], share))
    kept = after & set(range(len(single)))
    # Each draws its own number: of what was there before, one set holds the other.
    assert kept <= before or before <= kept


def test_auto_holds_out_a_twentieth_up_to_a_thousand_rows_and_half_a_million_tokens() -> None:
    assert [len(drawn([(1, 100)] * rows, "auto")) for rows in (2, 40, 211, 19_990, 20_000, 100_000)] == [
        1,
        2,
        11,
        1000,
        1000,
        1000,
    ]
    assert len(drawn([(1, 2000)] * 100_000, "auto")) == 250
    assert len(drawn([(1, 100)] * 100_000, 0.05)) == 5000  # a share that is named is taken as it is
    assert len(drawn([(1, 2000)] * 20_000, 0.5)) == 10_000


def test_no_room_for_a_long_one_takes_no_short_ones_instead() -> None:
    """Else what is held out would be shorter than what is trained on."""
    draw = random.Random(1)
    contents = [(1, draw.choice([100, 3000])) for _ in range(30_000)]
    sizes = [contents[i][1] for i in drawn(contents, "auto")]
    assert 490_000 < sum(sizes) <= 500_000
    assert sum(size == 3000 for size in sizes) / len(sizes) == pytest.approx(0.5, abs=0.08)


def test_one_that_is_larger_than_all_room_is_passed_over() -> None:
    assert drawn([(1, 600_000)] * 99 + [(1, 10)], "auto") == [99]
    assert drawn([(9, 1), (9, 1), (1, 1)], 0.1) == [2]


@pytest.mark.parametrize("rows", [2, 3, 7, 50, 100, 300, 1000])
def test_shares_of_rows_are_of_the_decimals_that_were_typed(rows: int) -> None:
    for thousandths in range(1, 1000):
        typed = Decimal(thousandths) / 1000
        nearest = int((typed * rows).to_integral_value(ROUND_HALF_EVEN))
        assert len(drawn([(1, 1)] * rows, float(typed))) == min(max(1, nearest), rows - 1), typed
        assert sum(draw_rows(rows, float(typed), 0)) == nearest, typed
        assert sum(draw_rows(rows, float(typed + 2), 0)) == nearest + 2 * rows, typed


def test_draws_are_pinned() -> None:
    """The same on every machine and Python: artifacts elsewhere depend on it."""
    assert shuffled(8, "0") == [5, 4, 6, 0, 2, 7, 1, 3]
    assert drawn([(1, 1)] * 20, 0.1) == [4, 6]
