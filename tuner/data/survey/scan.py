"""A look over all files of a source before its rows are read, for what one row can't tell.

    a file's bytes → could they tell anything? → its chunks, the same → rows, parsed → each watch → Facts, a
    part of the source's Shape

A watch says by a look at the bytes whether it wants to see the rows in them; where none does, nothing is
parsed, and of a table nothing is read but its schema. The order of the files and of the rows changes nothing.
How to watch for more: a class as those of `verdicts`, `marked`, `empties` and `subsets`, its place in
`_watches`, its field in `Facts`.
"""

import codecs
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tuner.data.conversation import RowError
from tuner.data.files import encodings, row_files, tables
from tuner.data.files.chunk import CHUNK
from tuner.data.formats.columns import column_mapper
from tuner.data.formats.facts import SourceFacts
from tuner.data.formats.rows import RowShape
from tuner.data.formats.split_column import SplitColumns
from tuner.data.survey.null_arguments import CALLING, NullArguments
from tuner.data.survey.templated_texts import TemplatedTexts
from tuner.data.survey.verdict_columns import VerdictColumns

EDGE = 64
"""bytes of a piece that are looked at with the next, too: more than a key or a mark has"""


class Observer(Protocol):
    """What is looked for in the rows of a source."""

    def keys(self) -> frozenset[str]:
        """One of them is a column, or a key inside of one, of each table that could tell more."""
        ...

    def wants(self, content: bytes) -> bool:
        """Whether JSON rows of these bytes could tell more. It holds for the whole where it holds for a
        part.
        """
        ...

    def passed(self, chunk: row_files.Chunk) -> None:
        """A chunk that it does not want."""
        ...

    def see(self, row: Any) -> None:
        """A row, with its columns in their places; it may be anything."""
        ...

    def then(self) -> "Observer | None":
        """What is to be looked for in a second pass, once all rows were seen."""
        ...

    def tell(self, facts: SourceFacts) -> SourceFacts:
        """What was found, in the end."""
        ...


def scan_source(found: Sequence[tuple[Path, str]], shape: RowShape) -> RowShape:
    """The shape with what the whole source says: its files, each with its encoding. Raises DataError as
    reading them does.
    """
    watches = _watches(shape)
    _pass(found, shape, watches)
    again = [second for watch in watches if (second := watch.then()) is not None]
    _pass(found, shape, again)
    facts = SourceFacts()
    for watch in (*watches, *again):
        facts = watch.tell(facts)
    return replace(shape, facts=facts)


def _watches(shape: RowShape) -> list[Observer]:
    watches: list[Observer] = [NullArguments(shape)] if shape.format in CALLING else []
    watches += [VerdictColumns(shape.columns)] if shape.format in ("auto", "chosen", "label") else []
    watches += [TemplatedTexts(shape.columns)] if shape.format in ("auto", "chosen") else []
    return watches + ([SplitColumns(shape.split)] if shape.split != "all" else [])


def _pass(found: Sequence[tuple[Path, str]], shape: RowShape, watches: Sequence[Observer]) -> None:
    get = column_mapper(shape.columns) if shape.columns else None
    unwanted = list[tuple[Path, str]]()
    for file, encoding in found if watches else ():
        if not _could(file, encoding, watches):
            unwanted.append((file, encoding))
            continue
        for chunk in row_files.chunks(file, encoding, shape.letters):
            wanting = [watch for watch in watches if chunk.lines is None or watch.wants(chunk.lines)]
            for watch in watches:
                if watch not in wanting:
                    watch.passed(chunk)
            for _, row in row_files.parse_rows(chunk) if wanting else ():
                if isinstance(row, row_files.Unreadable):
                    continue
                try:
                    row = get(row) if get else row
                except RowError:
                    continue
                for watch in wanting:
                    watch.see(row)
    for watch in watches:
        if (
            isinstance(watch, TemplatedTexts) and watch.found
        ):  # what most rows are depends on those of all files
            for file, encoding in unwanted:
                for chunk in (
                    row_files.chunks(file, encoding, shape.letters) if tables.keys(file) is None else ()
                ):
                    watch.passed(chunk)


def _could(file: Path, encoding: str, watches: Sequence[Observer]) -> bool:
    """Whether a file could tell anything: a table by its keys, JSON by its bytes; any other text could."""
    names = tables.keys(file)
    if names is not None:
        return any(not names.isdisjoint(watch.keys()) for watch in watches)
    before = b""
    try:
        with encodings.open_unpacked(file) as stream:
            piece = stream.read(encodings.HEAD)
            is_json = piece.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
            if not is_json or not encodings.codec_of(piece, encoding, file).startswith("utf-8"):
                return True
            while piece:
                if any(watch.wants(before + piece) for watch in watches):
                    return True
                before, piece = piece[-EDGE:], stream.read(CHUNK)
    except (EOFError, zlib.error, OSError):
        return True  # what is wrong with it is said where it is read
    return False
