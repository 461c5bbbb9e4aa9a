"""The files of a data set, their rows in pieces for a job each, and which rows are drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.data.files.row_files import Chunk, chunks, count_rows, parse_rows
from tuner.data.formats import oasst_flat
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize import packing
from tuner.data.tokenize.job import TokenizeSettings
from tuner.errors import DataError

TREES = 500
"""trees of messages in a job"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file of rows."""

    name: str
    """as a person knows it"""
    path: Path
    source: int
    """index into the settings' sources"""
    label: str
    """what the ledger calls that source"""
    apart: bool
    """whether its rows are all held out"""
    encoding: str


JobRows = Chunk | tuple[oasst_flat.RowGroup, ...]


def job_rows(file: DataFile, shape: RowShape) -> Iterator[JobRows]:
    """A file in pieces for a job each: chunks of rows, or trees where its rows are the messages of trees."""
    rest = chunks(file.path, file.encoding, shape.letters)
    head, first = list[Chunk](), None  # chunks up to the first that has a row
    for chunk in rest:
        head.append(chunk)
        if (found := next(parse_rows(chunk), None)) is not None:
            first = found[1]
            break
    every = chain(head, rest)
    if not oasst_flat.is_flat(first, shape):
        yield from every
        return
    shape = shape.whole if file.apart else shape
    gathered = oasst_flat.group_rows((entry for chunk in every for entry in parse_rows(chunk)), shape)
    while batch := tuple(islice(gathered, TREES)):
        yield batch


def count_units(cut: JobRows) -> int:
    """What a draw counts: rows, or trees."""
    return len(cut) if isinstance(cut, tuple) else count_rows(cut)


def draw_rows(
    settings: TokenizeSettings, listed: Sequence[DataFile], takes: Sequence[int | float | None], seed: int
) -> list[NDArray[np.int64] | None]:
    """For each file, how often each of its rows (or trees) is used; None for once each. Held-out files are
    used whole.
    """
    result: list[NDArray[np.int64] | None] = [None] * len(listed)
    for source, take in enumerate(takes):
        if take is None or (isinstance(take, float) and take == 1):
            continue
        members = [i for i, file in enumerate(listed) if file.source == source and not file.apart]
        counts = [sum(map(count_units, job_rows(listed[i], settings.sources[source].shape))) for i in members]
        try:
            times = np.array(packing.draw_rows(sum(counts), take, seed), dtype=np.int64)
        except ValueError as error:
            name = listed[members[0]].label or "the data"
            raise DataError(
                f"{name}: {error}. Take fewer, or a share such as 2.0, which takes each twice."
            ) from None
        for i, part in zip(members, np.split(times, np.cumsum(counts)[:-1]), strict=True):
            result[i] = part
    return result
