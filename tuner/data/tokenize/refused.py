"""Rows that fail the run: their places, and what is to be done about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuner.data.files.data_paths import said_once
from tuner.data.files.row_files import chunks, parse_rows
from tuner.data.formats import hints, oasst_flat
from tuner.data.tokenize.data_file import DataFile
from tuner.data.tokenize.job import TokenizeSettings
from tuner.data.tokenize.ledger import FIRST
from tuner.errors import DataError


@dataclass(kw_only=True, slots=True)
class RefusedRows:
    """Rows that fail the run."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)
    """place and reason of each"""
    lines: list[tuple[Path, int]] = field(default_factory=list)
    """of the first"""

    def add(self, path: Path, found: Iterable[tuple[int, str]]) -> None:
        """(line, why) of rows of a file."""
        for line, why in found:
            self.count += 1
            if len(self.first) < FIRST:
                self.first.append((f"{path}:{line}", why))
                self.lines.append((path, line))

    def refuse(self, what: str, mend: str) -> None:
        """Raise DataError when there are any."""
        if self.count:
            more = f". The first {FIRST}:" if self.count > FIRST else ":"
            first = "\n  ".join(said_once(self.first))
            raise DataError(
                f"{self.count:,} row{'s' if self.count > 1 else ''} {what}{more}\n  {first}\n{mend}"
            )


def advice(bad: RefusedRows, listed: Sequence[DataFile], settings: TokenizeSettings) -> str:
    """What is to be done about bad rows: what reads them and those at the beginning of their file, where
    that was found by trying.
    """
    path, wanted = bad.lines[0][0], {line for path, line in bad.lines if path == bad.lines[0][0]}
    file = next(file for file in listed if file.path == path)
    shape, sample = settings.sources[file.source].shape, list[Any]()
    for chunk in chunks(path, file.encoding, shape.letters):
        for line, row in parse_rows(chunk):
            if line in wanted or len(sample) < hints.SAMPLE - len(wanted):
                wanted.discard(line)
                sample.append(row)
        if not wanted:
            break
    others = "Mend or remove them, or leave them out and count them with data.bad_rows=skip."
    way = (
        None
        if oasst_flat.is_flat(sample[0], shape)
        else hints.how_to_read(sample, shape, mixed=len(settings.sources) > 1)
    )
    if (
        way is None
        and settings.sources[file.source].strict
        and (more := hints.how_to_read_more(sample, shape, mixed=len(settings.sources) > 1))
    ):
        way = f"To use what is not read: {more}"
    return f"{others} {way}" if way else others
