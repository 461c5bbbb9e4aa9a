"""`data.columns`: where the columns of a format are found in rows that call them otherwise.

theirs                                   is
question                                 a column of that name
instances.0.input                        the way to a value inside the row: keys, and places in lists from 0
Context: {context}\\n{instances.0.input}  a text with the above in it; `{{name}}` is no such place,
                                          `data.fill` knows those

A column that was taken under another name is gone from where it was (unless it is named itself: `input:
input`), so that `instruction: input` does not read the same text twice.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.formats.checks import in_words, key_list

PLACE = re.compile(r"(?<!\{)\{(\w[\w. -]*)\}(?!\})")


def column_mapper(columns: Mapping[str, str]) -> Callable[[Any], dict[str, Any]]:
    """The function that gives a row the columns that a format looks for. It raises RowError for a row that
    lacks one.
    """
    getters = {
        ours: _filled(ours, theirs) if PLACE.search(theirs) else _at(ours, theirs)
        for ours, theirs in columns.items()
    }
    taken = mapped_places(columns) - columns.keys()
    heads = {place.partition(".")[0] for place in mapped_places(columns)} - taken - columns.keys()

    def apply(row: Any) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise RowError(f"data.columns needs an object, with columns, and this row is {in_words(row)}")
        rest = {
            key: value
            for key, value in row.items()
            if key not in taken and not (key in heads and isinstance(value, dict))
        }
        return rest | {ours: get(row) for ours, get in getters.items()}

    return apply


def mapped_places(columns: Mapping[str, str]) -> frozenset[str]:
    """All places that `columns` names."""
    return frozenset(place for theirs in columns.values() for place in PLACE.findall(theirs) or [theirs])


def partly_mapped(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """The columns of a row that are read in part: each with the ways to what `columns` names inside of it."""
    ways: dict[str, list[list[str]]] = {}
    for theirs in columns.values():
        for place in PLACE.findall(theirs) or [theirs]:
            head, *steps = place.split(".")
            if steps and place not in row and head in row and head not in columns.values():
                ways.setdefault(head, []).append(steps)
    return ways


def unmapped_parts(
    value: Any, way: tuple[str, ...], ways: Sequence[Sequence[str]]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What stands in a value beside `ways`: the way to it, without places in lists, and what it is."""
    if not isinstance(value, dict | list):
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        deeper = [steps[1:] for steps in ways if steps[0] == str(key)]
        here = (*way, str(key)) if isinstance(value, dict) else way
        if not deeper:
            yield here, part
        elif all(deeper):
            yield from unmapped_parts(part, here, deeper)


def value_at(row: Any, place: str) -> Any:
    """What is at a place of a row; None where there is no such place."""
    try:
        return _at("", place)(row) if isinstance(row, dict) else None
    except RowError:
        return None


def _at(ours: str, place: str) -> Callable[[dict[str, Any]], Any]:
    way = place.split(".")

    def get(row: dict[str, Any]) -> Any:
        if place in row:
            return row[place]
        value: Any = row
        for depth, step in enumerate(way):
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and len(step) < 10 and int(step) < len(value):
                value = value[int(step)]
            else:
                where = (
                    f"{'.'.join(way[:depth])} is {in_words(value)}"
                    if depth
                    else f"the row has the keys {key_list(row)}"
                )
                raise RowError(f"data.columns.{ours} points to {place}, which is not there: {where}")
        return value

    return get


def _filled(ours: str, pattern: str) -> Callable[[dict[str, Any]], str]:
    # literal, place, literal, place, …, literal
    pieces = PLACE.split(pattern)
    getters = [_at(ours, place) for place in pieces[1::2]]

    def get(row: dict[str, Any]) -> str:
        words = [pieces[0]]
        for get_one, place, literal in zip(getters, pieces[1::2], pieces[2::2], strict=True):
            value = get_one(row)
            if (
                isinstance(value, bool)
                or not isinstance(value, str | int | float)
                or (isinstance(value, int) and value.bit_length() > 1000)
            ):
                raise RowError(
                    f"data.columns.{ours} needs a string or a number at {place}, and this is "
                    f"{in_words(value)}"
                )
            words += [str(value), literal]
        return "".join(words)

    return get
