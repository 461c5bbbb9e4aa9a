"""Rows as the command line names them, and where they are found in the files of the data."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.files.row_files import Chunk, Unreadable, parse_rows
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize.data_file import DataFile, JobRows, count_units, job_rows
from tuner.errors import ConfigError

ROW_RANGE = re.compile(r"(?:(?P<file>.+):)?(?P<first>[1-9]\d*)(?:-(?P<last>[1-9]\d*))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRange:
    """Rows named on the command line: `12`, `3-17`, `support.jsonl:12`."""

    word: str
    first: int
    last: int
    file: str | None
    """a file's name or path, or a source of a mixture; None for all"""

    def means(self, file: DataFile) -> bool:
        """Whether it is about this file."""
        return self.file is None or self.file in (file.name, file.label, file.path.name, str(file.path))

    def holds(self, number: int) -> bool:
        return self.first <= number <= self.last


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrTree:
    """A row, or a tree of rows."""

    numbers: tuple[int, ...]
    """of the rows"""
    cut: JobRows
    """what holds just those"""
    times: int
    """how often it is drawn"""

    @property
    def row(self) -> Any:
        """The row itself; None where it is a tree, or no value."""
        value = None if isinstance(self.cut, tuple) or not self.cut.values else self.cut.values[0]
        return None if isinstance(value, Unreadable) else value


def parse_row_ranges(words: Sequence[str]) -> list[RowRange]:
    """What the bare words of the command line name. Raises ConfigError."""
    found = []
    for word in words:
        match = ROW_RANGE.fullmatch(word)
        if not match or (last := int(match["last"] or match["first"])) < int(match["first"]):
            raise ConfigError(
                f"{word!r} is not a row. preview takes the number of a row (12), a range (3-17), either of "
                "them in one file or source (support.jsonl:12), and, like any run, recipes that end in .yaml "
                "and fields."
            )
        found.append(RowRange(word=word, first=int(match["first"]), last=last, file=match["file"]))
    return found


def rows_of(
    file: DataFile, shape: RowShape, times: NDArray[np.int64] | None, near: Sequence[RowRange]
) -> Iterator[RowOrTree]:
    """The rows of a file, or its trees; with `near`, pieces of it that hold none of those rows are passed
    over unread.
    """
    at = 0  # among the units of the file
    for cut in job_rows(file, shape):
        if isinstance(cut, tuple):
            for index, tree in enumerate(cut, at):
                yield RowOrTree(
                    numbers=tree.numbers, cut=(tree,), times=1 if times is None else int(times[index])
                )
        else:
            last = cut.first + (
                cut.lines.count(b"\n") if cut.lines is not None else len(cut.values or ()) - 1
            )
            if not near or any(request.first <= last and cut.first <= request.last for request in near):
                for index, (number, row) in enumerate(parse_rows(cut), at):
                    yield RowOrTree(
                        numbers=(number,),
                        cut=Chunk(first=number, values=[row]),
                        times=1 if times is None else int(times[index]),
                    )
            if near and all(request.last <= last for request in near):
                return
        at += count_units(cut) if times is not None else 0
