"""The held-out draw on documents: rows that share tokens are on one side, whatever rows they are spread
over.
"""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.tokenize.held_out import HeldOut, contents, hold_out
from tuner.data.tokenize.job import TokenizedRows
from tuner.data.tokenize.ledger import FileCounts
from tuner.data.tokenize.spool import Spool

ROWS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=60)
"""for each row, the words that its documents consist of"""


class Told(Spool):
    """Documents of which only the numbers count: no file is behind them."""

    def __init__(self, rows: list[list[int]], files: list[int] | None = None) -> None:
        flat = [(unit, word) for unit, words in enumerate(rows) for word in words]
        units, words = (np.array(column) for column in zip(*flat, strict=True))
        self.units, self.hashes = units.astype(np.int64), words.astype(np.uint64)
        self.files = (
            np.zeros(len(flat), dtype=np.int32) if files is None else np.array(files, dtype=np.int32)[units]
        )
        self.lengths, self.trained = (np.full(len(flat), n, dtype=np.int32) for n in (10, 4))


def split(
    rows: list[list[int]], share: Any, *, files: list[int] | None = None, apart: tuple[bool, ...] = (False,)
) -> tuple[HeldOut, Told]:
    documents = Told(rows, files)
    return hold_out(documents, apart, [FileCounts(source="", file="a") for _ in apart], share, 0), documents


def components(rows: list[list[int]]) -> list[set[int]]:
    """Rows that hang together, by the slow way."""
    found: list[tuple[set[int], set[int]]] = []
    for row, words in enumerate(rows):
        members, said = {row}, set(words)
        for other in [pair for pair in found if pair[1] & said]:
            found.remove(other)
            members, said = members | other[0], said | other[1]
        found.append((members, said))
    return [members for members, _ in found]


@given(rows=ROWS)
def test_a_content_is_all_rows_that_hang_together(rows: list[list[int]]) -> None:
    documents = Told(rows)
    found = dict(zip(documents.units.tolist(), contents(documents).tolist(), strict=True))
    for members in components(rows):
        assert {found[row] for row in members} == {min(members)}


def test_a_long_chain_is_one_content() -> None:
    assert set(contents(Told([[i, i + 1] for i in range(500)][::-1])).tolist()) == {0}


@given(rows=ROWS, share=st.floats(0.01, 0.9))
def test_no_content_is_on_both_sides(rows: list[list[int]], share: float) -> None:
    apart, documents = split(rows, share)
    which = apart.documents
    assert not set(documents.hashes[which].tolist()) & set(documents.hashes[~which].tolist())
    assert not set(documents.units[which].tolist()) & set(documents.units[~which].tolist())
    together = components(rows)
    assert (apart.of_rows, apart.of_contents) == (len(rows), len(together))
    assert (apart.rows, apart.tokens) == (len(set(documents.units[which].tolist())), 4 * int(which.sum()))
    assert apart.rows <= max(
        min(max(1, round(len(rows) * share) + 1), len(rows) - 1), min(map(len, together))
    )
    assert bool(apart.rows) == (len(together) > 1)


@settings(deadline=None)
@given(times=st.lists(st.integers(1, 5), min_size=40, max_size=120), share=st.floats(0.1, 0.5))
def test_about_the_share_of_rows_is_held_out_whatever_stands_there_twice(
    times: list[int], share: float
) -> None:
    rows = [[content] for content, count in enumerate(times) for _ in range(count)]
    assert abs(split(rows, share)[0].rows - share * len(rows)) <= 5.5


def test_rows_that_stand_three_times_hold_out_the_share() -> None:
    rows = [[i % 60] for i in range(180)]
    apart, documents = split(rows, 0.2)
    assert (apart.rows, apart.of_rows, apart.contents, apart.of_contents) == (36, 180, 12, 60)
    once, _ = split(rows[:60], 0.2)
    # the copies move nothing
    assert set(documents.hashes[apart.documents].tolist()) == set(np.flatnonzero(once.documents).tolist())
    assert (
        apart.told()[0]
        == "held out: 36 of 180 rows (12 of 60 that differ); a loss stands on 144 tokens, which is little"
    )


def test_rows_that_are_left_out_move_nothing() -> None:
    """The draw goes by a row's place among all that were read: another data.length, which drops some,
    holds out the same.
    """
    rows = [[i] for i in range(100)]
    all_, documents = split(rows, 0.1)
    some = Told(rows)
    kept = np.arange(100) % 7 != 3
    for name in ("units", "hashes", "files", "lengths", "trained"):
        setattr(some, name, getattr(some, name)[kept])
    held = hold_out(some, [False], [FileCounts(source="", file="a")], 0.1, 0)
    before, after = set(documents.units[all_.documents].tolist()), set(some.units[held.documents].tolist())
    assert len(after - before) <= len(before - after) + 1
    assert len(before & after) >= 7


def test_files_of_their_own_take_what_is_alike_with_them() -> None:
    apart, documents = split([[1], [2], [3], [2, 9]], 0.5, files=[0, 0, 1, 1], apart=(False, True))
    assert documents.units[apart.documents].tolist() == [1, 2, 3, 3]
    assert apart.told() == [
        "held out: 3 of 4 rows (2 of 3 that differ); a loss stands on 16 tokens, which is little"
    ]
    everything, documents = split([[1], [1]], 0.5, files=[0, 1], apart=(False, True))
    assert documents.units[everything.documents].tolist() == [1]  # else nothing would be left to train on
    assert (
        everything.told()[-1]
        == "all rows to train on have the tokens of rows in data.held_out_path: the loss is over what was"
        " trained on"
    )


def test_few_rows_are_told_what_it_costs() -> None:
    few = split([[i] for i in range(40)], 0.25)[0]
    assert (
        few.cost
        == "10 of 40 rows are held out and not trained on; data.held_out=0 trains on all 40, and measures no"
        " loss"
    )
    assert few.entry() == {"rows": 10, "of_rows": 40, "contents": 10, "of_contents": 40, "cost": few.cost}
    assert split([[i] for i in range(20)], "auto")[0].cost.startswith("1 of 20 rows is held out")
    assert split([[i] for i in range(200)], "auto")[0].cost == ""
    assert split([[i] for i in range(40)], 0.0)[0].entry() == {}
    assert split([[7]] * 9, "auto")[0].told() == ["nothing is held out: all 9 rows hold the same content"]


def test_documents_of_a_stage_are_read_as_they_were_added(tmp_path: Path) -> None:
    made = TokenizedRows(
        read=3,
        kept=3,
        places=np.array([0, 1, 1, 2]),
        lines=np.array([1, 2, 2, 3], dtype=np.int32),
        lengths=np.array([1, 1, 1, 1], dtype=np.int32),
    )
    made.ids, made.trained = np.arange(4, dtype=np.int32), np.ones(4, dtype=np.bool_)
    made.hashes, made.weights = np.array([5, 5, 6, 7], dtype=np.uint64), np.ones(4, dtype=np.int32)
    documents = Spool(tmp_path / "documents")
    documents.add(made, file=0, first=10)
    documents.done()
    assert contents(documents).tolist() == [10, 10, 10, 12]
    documents.close()
