"""One JSON object that holds the rows, on one line or on several: `{"version": "1.0", "data": [{…}, {…}]}`.

The rows are read where exactly one key holds a list of objects. What else the object says is named, not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import IO, Any

from tuner.data.files.json_list import is_turn, items_inside
from tuner.data.files.json_window import Ended, Window
from tuner.data.formats.checks import in_words, key_list
from tuner.data.formats.column_names import LISTS, PAIR
from tuner.errors import DataError

OF_A_ROW = frozenset(
    (*LISTS, *"history chosen rejected prompt completion tools functions instances replies".split())
)
"""keys that hold lists in one row: an object that has one of them is a row"""


@dataclass(kw_only=True, slots=True)
class ObjectContents:
    """What a text holds that is one JSON object and nothing else."""

    lists: dict[str, int] = field(default_factory=dict)
    """key → how many objects, where its value is a list of nothing but objects, which are no turns"""
    beside: dict[str, str] = field(default_factory=dict)
    """key → what its value is, in words, of all others"""
    texts: set[str] = field(default_factory=set)
    """keys of texts"""
    deep: set[str] = field(default_factory=set)
    """keys of lists whose objects hold turns, so that each is a row"""
    columns: int = 0
    """keys whose values are lists of anything else, or objects"""

    @property
    def is_row(self) -> bool:
        """Whether the object is a row itself."""
        keys = (self.lists.keys() | self.beside.keys()) - self.texts - self.deep
        return bool(keys & OF_A_ROW) or "text" in self.texts or not any(map(self.texts.isdisjoint, PAIR))


def inspect_object(stream: IO[bytes], file: Path) -> ObjectContents | None:
    """What the only object of a text holds; None where the text is anything else, or broken."""
    window, held = Window(stream), ObjectContents()
    try:
        for key in _keys(window):
            if key in held.lists or key in held.beside:
                return None
            if window.skip() == "[":
                _list(window, file, key, held)
            else:
                value, _ = window.item()
                held.beside[key] = in_words(value)
                held.columns += isinstance(value, dict)
                held.texts |= {key} if isinstance(value, str) else set()
    except (Ended, JSONDecodeError, DataError):
        return None
    return held if (held.lists or held.beside) and not window.skip() else None


def _list(window: Window, file: Path, key: str, held: ObjectContents) -> None:
    count, objects, deep = 0, 0, False
    for value, _ in items_inside(window, file):
        count += 1
        deep |= isinstance(value, dict) and any(isinstance(value.get(turns), list) for turns in LISTS)
        objects += not isinstance(value, str | int | float | list | None) and not is_turn(value)
    if count and objects == count:
        held.lists[key] = count
        held.deep |= {key} if deep else set()
    else:
        held.beside[key] = f"a list of {count}"
        held.columns += 1


def _keys(window: Window) -> Iterator[str]:
    """The keys of the object that begins here; at each the window is before its value, and has to be
    behind it when the next is asked for.
    """
    sign = window.skip()
    while sign in ("{", ","):
        window.at += 1
        if window.skip() != '"':
            raise Ended
        key, _ = window.item()
        if window.skip() != ":":
            raise Ended
        window.at += 1
        yield str(key)
        sign = window.skip()
    if sign != "}":
        raise Ended
    window.at += 1


def rows_key(held: ObjectContents, file: Path) -> str | None:
    """The key that the rows are under; None where the object is a row. Raises DataError where it can't be
    told.
    """
    if held.is_row:
        return None
    if len(held.lists) == 1:
        return next(iter(held.lists))
    if held.lists:
        counted = ", ".join(f"{key} ({count:,})" for key, count in held.lists.items())
        raise DataError(
            f"{file}: one JSON object with several lists of objects: {counted}; the rows are expected in "
            f"one. Take out the one that is meant, as with jq -c '.{next(iter(held.lists))}[]' {file.name} "
            "> rows.jsonl"
        )
    if held.columns > 1 and held.columns == len(held.beside):
        raise DataError(
            f"{file}: one JSON object whose keys ({key_list(held.beside)}) are columns or row numbers, where "
            "one row a line (JSONL) or a JSON list of rows was expected. pandas writes rows with "
            "to_json(…, orient='records', lines=True)."
        )
    return None


def items_under(stream: IO[bytes], file: Path, under: str) -> Iterator[tuple[Any, int]]:
    """The items of the list under a key, as `json_list.items` gives those of a list."""
    window = Window(stream)
    for key in _keys(window):
        if key != under:
            window.skip()
            window.item()
            continue
        window.skip()
        yield from items_inside(window, file)
        return


def note(held: ObjectContents, under: str) -> str:
    """What is to be said of an object whose rows are read."""
    beside = ", ".join(f"{key} ({what})" for key, what in held.beside.items())
    return f"the rows are the {held.lists[under]:,} objects under {under!r}" + (
        f"; beside it, not read: {beside}" if beside else ""
    )
