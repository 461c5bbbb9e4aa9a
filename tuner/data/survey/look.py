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
from tuner.data.files import encodings, tables
from tuner.data.files import read as files
from tuner.data.files.chunk import CHUNK
from tuner.data.formats.columns import mapped
from tuner.data.formats.facts import Facts
from tuner.data.formats.rows import Shape
from tuner.data.formats.subsets import Subsets
from tuner.data.survey.empties import CALLING, Empties
from tuner.data.survey.marked import Marked
from tuner.data.survey.verdicts import Verdicts

EDGE = 64
"""bytes of a piece that are looked at with the next, too: more than a key or a mark has"""


class Watch(Protocol):
    """What is looked for in the rows of a source."""

    def keys(self) -> frozenset[str]:
        """One of them is a column, or a key inside of one, of each table that could tell more."""
        ...

    def wants(self, content: bytes) -> bool:
        """Whether JSON rows of these bytes could tell more. It holds for the whole where it holds for a
        part.
        """
        ...

    def passed(self, chunk: files.Chunk) -> None:
        """A chunk that it does not want."""
        ...

    def see(self, row: Any) -> None:
        """A row, with its columns in their places; it may be anything."""
        ...

    def then(self) -> "Watch | None":
        """What is to be looked for in a second pass, once all rows were seen."""
        ...

    def tell(self, facts: Facts) -> Facts:
        """What was found, in the end."""
        ...


def surveyed(found: Sequence[tuple[Path, str]], shape: Shape) -> Shape:
    """The shape with what the whole source says: its files, each with its encoding. Raises DataError as
    reading them does.
    """
    watches = _watches(shape)
    _pass(found, shape, watches)
    again = [second for watch in watches if (second := watch.then()) is not None]
    _pass(found, shape, again)
    facts = Facts()
    for watch in (*watches, *again):
        facts = watch.tell(facts)
    return replace(shape, facts=facts)


def _watches(shape: Shape) -> list[Watch]:
    watches: list[Watch] = [Empties(shape)] if shape.format in CALLING else []
    watches += [Verdicts(shape.columns)] if shape.format in ("auto", "chosen", "label") else []
    watches += [Marked(shape.columns)] if shape.format in ("auto", "chosen") else []
    return watches + ([Subsets(shape.split)] if shape.split != "all" else [])


def _pass(found: Sequence[tuple[Path, str]], shape: Shape, watches: Sequence[Watch]) -> None:
    get = mapped(shape.columns) if shape.columns else None
    unwanted = list[tuple[Path, str]]()
    for file, encoding in found if watches else ():
        if not _could(file, encoding, watches):
            unwanted.append((file, encoding))
            continue
        for chunk in files.chunks(file, encoding, shape.letters):
            wanting = [watch for watch in watches if chunk.lines is None or watch.wants(chunk.lines)]
            for watch in watches:
                if watch not in wanting:
                    watch.passed(chunk)
            for _, row in files.values(chunk) if wanting else ():
                if isinstance(row, files.Unreadable):
                    continue
                try:
                    row = get(row) if get else row
                except RowError:
                    continue
                for watch in wanting:
                    watch.see(row)
    for watch in watches:
        if isinstance(watch, Marked) and watch.found:  # what most rows are depends on those of all files
            for file, encoding in unwanted:
                for chunk in files.chunks(file, encoding, shape.letters) if tables.keys(file) is None else ():
                    watch.passed(chunk)


def _could(file: Path, encoding: str, watches: Sequence[Watch]) -> bool:
    """Whether a file could tell anything: a table by its keys, JSON by its bytes; any other text could."""
    names = tables.keys(file)
    if names is not None:
        return any(not names.isdisjoint(watch.keys()) for watch in watches)
    before = b""
    try:
        with encodings.unpacked(file) as stream:
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
