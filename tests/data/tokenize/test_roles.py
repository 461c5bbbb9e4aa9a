"""Rows that compare answers, on their way to the packs: real pairs and verdicts, read as for an objective
that compares them. None does today, so the settings say it here.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tuner.config.schema import Chat
from tuner.data.chat.template import Template
from tuner.data.conversation import DocumentRole, Preference, compared
from tuner.data.files.row_files import Chunk, chunks, parse_rows
from tuner.data.formats.rows import RowShape, read_row
from tuner.data.packs import SCHEMA, Pack, Packs, write_packs
from tuner.data.tokenize.dataset import drop_duplicates
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.job import (
    NO_ANSWER,
    OUT_OF_REACH,
    Job,
    SourceSettings,
    TokenizedRows,
    TokenizeSettings,
)
from tuner.data.tokenize.ledger import FileCounts
from tuner.data.tokenize.packing import pack_pairs
from tuner.data.tokenize.spool import Spool
from tuner.data.tokenize.workers import tokenize_jobs
from tuner.train.batch import collate, split_documents

CHOSEN, REJECTED = DocumentRole.CHOSEN, DocumentRole.REJECTED


@pytest.fixture(scope="module")
def settings(shared: Path, chatml: Chat) -> TokenizeSettings:
    return TokenizeSettings(
        model=shared / "tokenizers" / "smollm2",
        chat=chatml,
        sources=(SourceSettings(shape=RowShape(), fill={}, system=None),),
        length=8192,
        overlong="auto",
        loss="assistant",
        reasoning="last",
        compares=True,
    )


@pytest.fixture(scope="module")
def rows(shared: Path) -> Callable[[str], list[Any]]:
    def read(name: str) -> list[Any]:
        found = (
            row for chunk in chunks(shared / "data" / "preference" / name) for _, row in parse_rows(chunk)
        )
        return list(islice(found, 120))

    return read


def job(rows: list[Any]) -> Job:
    return Job(source=0, rows=Chunk(first=1, values=rows))


def spooled(made: TokenizedRows, path: Path, repeats: list[int] | None = None) -> Spool:
    documents = Spool(path / "spill")
    times = None if repeats is None else np.array(repeats, dtype=np.int64)[made.places]
    documents.add(made, file=0, first=0, repeats=times)
    documents.done()
    return documents


def packed(documents: Spool, length: int, out: Path) -> list[Pack]:
    """As the stage does it."""
    follows = (documents.roles == REJECTED).tolist()
    packs = pack_pairs(documents.lengths.tolist(), follows, length, seed=0)
    write_packs(out / "train.arrow", (documents.pack(np.array(members)) for members in packs))
    documents.close()
    return list(Packs.open(out / "train.arrow"))


def documents_of(pack: Pack) -> list[tuple[int, int, list[int], list[bool]]]:
    """(role, line, ids, mask) of each."""
    assert pack.roles is not None
    ends = np.cumsum([0, *pack.lengths]).tolist()
    return [
        (role, line, pack.ids[a:b].tolist(), pack.trained[a:b].tolist())
        for role, line, (a, b) in zip(pack.roles.tolist(), pack.lines.tolist(), pairwise(ends), strict=True)
    ]


@pytest.mark.parametrize("name", ["dpo_en.json", "dpo_zh.json"])
def test_real_pairs_stay_together_and_in_order_up_to_the_batch(
    name: str,
    rows: Callable[[str], list[Any]],
    settings: TokenizeSettings,
    template: Template,
    tmp_path: Path,
) -> None:
    given = rows(name)
    made = DocumentMaker(settings).make(job(given))
    lost = made.dropped.get(OUT_OF_REACH, [])  # what comes before the answers is longer than half a pack
    assert made.kept == len(given) - len(lost)
    assert len(lost) <= 1
    assert not made.bad
    packs = packed(spooled(made, tmp_path), settings.length, tmp_path)
    found = [document for pack in packs for document in documents_of(pack)]
    assert len(found) == 2 * made.kept
    assert max(len(pack.ids) for pack in packs) <= settings.length
    for pack in packs:
        assert pack.roles is not None
        assert pack.roles.dtype == np.int8
        assert pack.roles.tolist() == [CHOSEN, REJECTED] * (len(pack.roles) // 2)
        assert pack.lines[::2].tolist() == pack.lines[1::2].tolist()
        assert collate([pack]).roles == tuple(pack.roles.tolist())
        assert [one.roles.tolist() for one in split_documents(pack) if one.roles is not None] == [
            [role] for role in pack.roles.tolist()
        ]
    whole = 0
    for line, row in enumerate(given, start=1):
        (sample,) = read_row(row, RowShape())
        assert isinstance(sample, Preference)
        sides = template.encode([conversation for _, conversation in compared(sample)])
        if int(sides.offsets[-1]) <= settings.length:
            whole += 1
            ends = sides.offsets.tolist()
            wanted = [
                (role, line, sides.ids[a:b].tolist(), sides.trained[a:b].tolist())
                for role, (a, b) in zip((CHOSEN, REJECTED), pairwise(ends), strict=True)
            ]
            assert [document for document in found if document[1] == line] == wanted
    assert whole > len(given) / 2


def test_real_verdicts_are_roles(
    rows: Callable[[str], list[Any]], settings: TokenizeSettings, tmp_path: Path
) -> None:
    given = rows("kto_en.json")
    made = DocumentMaker(settings).make(job(given))
    packs = packed(spooled(made, tmp_path), settings.length, tmp_path)
    found = {line: role for pack in packs for role, line, _, _ in documents_of(pack)}
    assert len(found) == made.kept == len(given)
    assert {DocumentRole.GOOD, DocumentRole.BAD} == set(found.values())
    for line, row in enumerate(given, start=1):
        assert (found[line] == DocumentRole.GOOD) == row["label"]


def test_a_worker_gives_the_same_roles(rows: Callable[[str], list[Any]], settings: TokenizeSettings) -> None:
    jobs = [job(rows("dpo_en.json")[:20]), job(rows("kto_en.json")[:20])]
    here, there = (
        [made.roles.tolist() for made in tokenize_jobs(settings, jobs, workers)] for workers in (1, 2)
    )
    assert here == there
    assert here[0] == [CHOSEN, REJECTED] * 20


def pair(number: int, chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"prompt": f"question {number}?", "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("rule", ["auto", "truncate", "split"])
def test_a_pair_that_is_longer_than_a_pack_is_cut_on_both_sides(
    rule: str, settings: TokenizeSettings, tmp_path: Path
) -> None:
    short = replace(settings, length=64, overlong=rule)
    made = DocumentMaker(short).make(job([pair(1, "word " * 90, "other " * 90), pair(2)]))
    assert (made.kept, made.truncated, made.split, len(made.overlong)) == (2, 1, 0, 1)
    assert made.overlong[0].whole > 180
    for pack in packed(spooled(made, tmp_path), 64, tmp_path):
        assert pack.roles is not None
        assert pack.roles.tolist() == [CHOSEN, REJECTED]
        assert len(pack.ids) <= 64


def test_a_side_without_the_other_is_left_out(settings: TokenizeSettings) -> None:
    long = pair(1, "fine", "x")
    long["prompt"] = "word " * 60
    made = DocumentMaker(replace(settings, length=80)).make(job([long, pair(2, "yes", " ")]))
    assert (made.kept, len(made.lengths)) == (0, 0)
    assert made.dropped == {OUT_OF_REACH: [1], NO_ANSWER: [2]}


def test_pairs_are_repeated_as_pairs(settings: TokenizeSettings, tmp_path: Path) -> None:
    made = DocumentMaker(settings).make(job([pair(1), pair(2), pair(3)]))
    documents = spooled(made, tmp_path, repeats=[2, 0, 1])
    assert documents.lines.tolist() == [1, 1, 1, 1, 3, 3]
    assert documents.roles.tolist() == [CHOSEN, REJECTED] * 3
    documents.close()


def test_duplicates_of_pairs_are_whole_pairs(settings: TokenizeSettings, tmp_path: Path) -> None:
    given = [pair(1), pair(1, "yes", "never"), pair(1, "no", "yes"), pair(1)]
    made = DocumentMaker(settings).make(job(given))
    documents, counts = spooled(made, tmp_path), FileCounts(source="", file="a", rows=4, kept=4)
    drop_duplicates(documents, [counts], drop=True)
    assert documents.lines.tolist() == [1, 1, 2, 2, 3, 3], "only the last row says nothing new"
    assert (counts.kept, counts.lost) == (3, 1)
    documents.close()


def test_an_objective_that_does_not_compare_refuses_them(settings: TokenizeSettings) -> None:
    made = DocumentMaker(replace(settings, compares=False)).make(job([pair(1)]))
    assert [line for line, _ in made.bad] == [1]
    assert "data.format=chosen trains on the better one" in made.bad[0][1]


def test_without_roles_the_file_has_no_column_for_them(settings: TokenizeSettings, tmp_path: Path) -> None:
    made = DocumentMaker(settings).make(job([{"prompt": "a?", "completion": "b"}] * 3))
    assert made.roles.tolist() == [DocumentRole.NONE] * 3
    (pack,) = packed(spooled(made, tmp_path), settings.length, tmp_path)
    assert pack.roles is None
    assert collate([pack]).roles == ()
    assert pa.ipc.open_file(str(tmp_path / "train.arrow")).schema == SCHEMA
