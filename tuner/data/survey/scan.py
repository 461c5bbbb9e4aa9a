"""A look over all files of a source before its rows are read, for what one row can't tell.

    a file's bytes → could they tell anything? → its chunks, the same → rows, parsed → each observer →
    SourceFacts, a part of the source's RowShape

An observer says by a look at the bytes whether it wants to see the rows in them; where none does, nothing is
parsed, and of a table nothing is read but its schema. The order of the files and of the rows changes nothing.
How to look for more: a module with an Observer, its place in `_observers`, its field in `SourceFacts`.
"""

import codecs
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuner.data.conversation import RowError
from tuner.data.files import encodings, row_files, tables
from tuner.data.files.chunk import CHUNK
from tuner.data.formats.columns import column_mapper
from tuner.data.formats.shape import RowShape, SourceFacts
from tuner.data.survey.null_arguments import CALLING, NullArguments
from tuner.data.survey.observer import Observer
from tuner.data.survey.split_columns import SplitColumns
from tuner.data.survey.templated_texts import TemplatedTexts
from tuner.data.survey.verdict_columns import VerdictColumns
from tuner.hardware.limits import next_record, reading

EDGE = 64
"""bytes of a piece that are looked at with the next, too: more than a key or a mark has"""


def scan_source(found: Sequence[tuple[Path, str]], shape: RowShape) -> RowShape:
    """The shape with what the whole source says: its files, each with its encoding. Raises DataError as
    reading them does.
    """
    observers = _observers(shape)
    _pass(found, shape, observers)
    again = [second for observer in observers if (second := observer.then()) is not None]
    _pass(found, shape, again)
    facts = SourceFacts()
    for observer in (*observers, *again):
        facts = observer.tell(facts)
    return replace(shape, facts=facts)


def _observers(shape: RowShape) -> list[Observer]:
    observers: list[Observer] = [NullArguments(shape)] if shape.format in CALLING else []
    observers += [VerdictColumns(shape.columns)] if shape.format in ("auto", "chosen", "label") else []
    observers += [TemplatedTexts(shape.columns)] if shape.format in ("auto", "chosen") else []
    return observers + ([SplitColumns(shape.split)] if shape.split != "all" else [])


def _pass(found: Sequence[tuple[Path, str]], shape: RowShape, observers: Sequence[Observer]) -> None:
    get = column_mapper(shape.columns) if shape.columns else None
    unwanted = list[tuple[Path, str]]()
    for file, encoding in found if observers else ():
        if not _could(file, encoding, observers):
            unwanted.append((file, encoding))
            continue
        for chunk in row_files.chunks(file, encoding, shape.letters):
            wanting = [
                observer for observer in observers if chunk.lines is None or observer.wants(chunk.lines)
            ]
            for observer in observers:
                if observer not in wanting:
                    observer.passed(chunk)
            for _, row in row_files.parse_rows(chunk) if wanting else ():
                if isinstance(row, row_files.Unreadable):
                    continue
                try:
                    row = get(row) if get else row
                except RowError:
                    continue
                for observer in wanting:
                    observer.see(row)
    counting = [observer for observer in observers if observer.counts_all()]
    for file, encoding in unwanted if counting else ():
        for chunk in row_files.chunks(file, encoding, shape.letters) if tables.keys(file) is None else ():
            for observer in counting:
                observer.passed(chunk)


def _could(file: Path, encoding: str, observers: Sequence[Observer]) -> bool:
    """Whether a file could tell anything: a table by its keys, JSON by its bytes; any other text could."""
    names = tables.keys(file)
    if names is not None:
        return any(not names.isdisjoint(observer.keys()) for observer in observers)
    before = b""
    try:
        with reading(str(file)), encodings.open_unpacked(file) as stream:
            piece = stream.read(encodings.HEAD)
            is_json = piece.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
            if not is_json or not encodings.codec_of(piece, encoding, file).startswith("utf-8"):
                return True
            while piece:
                if any(observer.wants(before + piece) for observer in observers):
                    return True
                before, piece = piece[-EDGE:], stream.read(CHUNK)
                next_record()
    except (EOFError, zlib.error, OSError):
        return True  # what is wrong with it is said where it is read
    return False
