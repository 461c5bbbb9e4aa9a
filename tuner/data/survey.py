"""A look over all files of a source before its rows are read, for what one row can't tell.

    a file's bytes → could they tell anything? → its chunks, the same → rows, parsed → each watch → Facts, a part of the source's Shape

A watch says which words must stand in a chunk that it wants to see; where none of them does, nothing is parsed, and of a table nothing is read
but its schema. The order of the files and of the rows changes nothing. How to watch for more: a class as `Verdicts`, its place in `_watches`,
its field in `Facts`.
"""

import codecs
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tuner.data import encodings, files, tables
from tuner.data.chunk import CHUNK
from tuner.data.conversation import RowError
from tuner.data.empties import CALLING, Empties
from tuner.data.formats import preference
from tuner.data.formats.columns import mapped
from tuner.data.formats.facts import Facts
from tuner.data.formats.keys import understood
from tuner.data.marked import Marked
from tuner.data.rows import Shape
from tuner.data.subsets import Subsets

MOST = 8
"""values of a column that are kept: with more of them it holds no verdicts"""


class Watch(Protocol):
    """What is looked for in the rows of a source."""

    def words(self) -> Sequence[bytes]:
        """One of them is in each chunk of lines that could tell more; none once nothing more can be learnt."""
        ...

    def beside(self) -> Sequence[bytes]:
        """One of these is in each such chunk too; none where that is not asked for."""
        ...

    def keys(self) -> frozenset[str]:
        """One of them is a column, or a key inside of one, of each table that could tell more."""
        ...

    def passed(self, chunk: files.Chunk) -> None:
        """A chunk of lines that holds none of its words, and is not parsed."""
        ...

    def see(self, row: Any) -> None:
        """A row, with its columns in their places; it may be anything."""
        ...

    def tell(self, facts: Facts) -> Facts:
        """What was found, once all rows were seen."""
        ...


def surveyed(found: Sequence[tuple[Path, str]], shape: Shape) -> Shape:
    """The shape with what the whole source says: its files, each with its encoding. Raises DataError as reading them does."""
    watches = _watches(shape)
    _pass(found, shape, watches)
    again: list[Watch] = [second for watch in watches if isinstance(watch, Empties) and (second := watch.then())]
    if again:
        _pass(found, shape, again)
    facts = Facts()
    for watch in (*watches, *again):
        facts = watch.tell(facts)
    return replace(shape, facts=facts)


def _pass(found: Sequence[tuple[Path, str]], shape: Shape, watches: Sequence["Watch"]) -> None:
    get = mapped(shape.columns) if shape.columns else None
    for file, encoding in found:
        for chunk in _chunks(file, encoding, shape.letters, watches):
            wanting = [watch for watch in watches if chunk.lines is None or _wants(watch, chunk.lines)]
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


def _watches(shape: Shape) -> list[Watch]:
    watches: list[Watch] = [Empties(shape)] if shape.format in CALLING else []
    watches += [Verdicts(shape.columns)] if shape.format in ("auto", "chosen", "label") else []
    watches += [Marked(shape.columns)] if shape.format in ("auto", "chosen") else []
    return watches + ([Subsets(shape.split)] if shape.split != "all" else [])


def _chunks(file: Path, encoding: str, letters: bool, watches: Sequence[Watch]) -> Iterator[files.Chunk]:
    """The chunks of a file, if it could tell anything."""
    names = tables.keys(file)
    if names is None:
        wanted = _could(file, encoding, [word for watch in watches for word in watch.words()])
    else:
        wanted = any(not names.isdisjoint(watch.keys()) for watch in watches)
    return files.chunks(file, encoding, letters) if wanted else iter(())


def _could(file: Path, encoding: str, words: Sequence[bytes]) -> bool:
    """Whether one of the words may be in a file that is no table."""
    if not words:
        return False
    longest, before = max(map(len, words)), b""
    try:
        with encodings.unpacked(file) as stream:
            piece = stream.read(encodings.HEAD)
            is_json = piece.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
            if not is_json or not encodings.codec_of(piece, encoding, file).startswith("utf-8"):
                return True
            while piece:
                if _holds(before + piece, words):
                    return True
                before, piece = piece[-longest:], stream.read(CHUNK)
    except (EOFError, zlib.error, OSError):
        return True  # what is wrong with it is said where it is read
    return False


def _wants(watch: Watch, lines: bytes) -> bool:
    if isinstance(watch, Empties) and not watch.wants(lines):
        return False
    return _holds(lines, watch.words()) and (not watch.beside() or _holds(lines, watch.beside()))


def _holds(content: bytes, words: Sequence[bytes]) -> bool:
    keys, others = _patterns(tuple(words))
    return any(word in content for word in others) or (keys is not None and keys.search(content) is not None)


@lru_cache(maxsize=64)
def _patterns(words: tuple[bytes, ...]) -> tuple[re.Pattern[bytes] | None, tuple[bytes, ...]]:
    """Many keys in quotes are found in one go; other words are looked for one by one, which is faster for them."""
    keys = [re.escape(word[1:]) for word in words if word[:1] == b'"']
    return re.compile(b'"(?:' + b"|".join(keys) + b")") if keys else None, tuple(word for word in words if word[:1] != b'"')


class Verdicts:
    """Columns with a verdict on each row's answer: what they hold in the whole source.

    Classes are called `label` too. So a verdict takes two values, a good one and a bad one, and no others. True and false under `label` or
    `kto_tag`, also as texts, need not both be there; nor does a good one where all are bad, unless it is a number.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._values: dict[str, set[str]] = {}
        self._heads = {ours: place.partition(".")[0] for ours, place in columns.items() if ours in preference.VERDICTS}

    def words(self) -> Sequence[bytes]:
        """The names of such columns, but for those that were found to hold more."""
        return [f'"{name}"'.encode() for name in self._names()]

    def beside(self) -> Sequence[bytes]:
        """None."""
        return ()

    def passed(self, chunk: files.Chunk) -> None:
        """Nothing is in it."""

    def keys(self) -> frozenset[str]:
        """The same as words."""
        return frozenset(self._names())

    def _names(self) -> list[str]:
        return [self._heads.get(name, name) for name in preference.VERDICTS if len(self._values.get(name, ())) < MOST]

    def see(self, row: Any) -> None:
        """A row."""
        if not isinstance(row, dict) or preference.NAMES.isdisjoint(row):
            return
        try:
            _, row = understood(row)
        except RowError:
            return
        if not isinstance(row, dict) or not preference.is_labelled(row):
            return
        for name in preference.NAMES.intersection(row):
            known = self._values.setdefault(name, set())
            if len(known) < MOST and (value := preference.spelled(row[name])):
                known.add(value)

    def tell(self, facts: Facts) -> Facts:
        """The first of such columns."""
        return replace(facts, verdict=next((name for name in preference.VERDICTS if _is_verdict(name, self._values.get(name, set()))), None))


def _is_verdict(name: str, values: set[str]) -> bool:
    said = {preference.WORDS.get(value) for value in values}
    if not said or None in said or len(values) > 2:
        return False
    if len(values) == 2:
        return len(said) == 2
    return (name in preference.CERTAIN and values <= {"true", "false"}) or (said == {False} and values.isdisjoint(("0", "-1")))
