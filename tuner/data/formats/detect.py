"""Which format a row has, from its keys: those that say more are looked for first; then known sets whose
columns are called otherwise.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.formats import column_names, known_templates
from tuner.data.formats.checks import in_words, key_list
from tuner.data.formats.label import is_judged
from tuner.data.formats.table import FORMATS
from tuner.data.formats.turns import standard_turn

BY_COLUMNS = tuple(
    (format.name, format.fits, frozenset(format.keys), format.is_turn is not None)
    for format in FORMATS
    if format.fits or format.keys
)
BY_TURNS = tuple((format.name, format.is_turn) for format in FORMATS if format.is_turn)
TURN_COLUMNS = {format.name: format.keys[0] for format in FORMATS if format.is_turn}
"""formats of turns → the column that they are in"""
BEGIN = re.compile(r"\s*\[\s*")


def sniff(row: Any, verdict: str | None = None) -> str:
    """The format of a row, from its keys; `verdict` is the column that says of its source's answers whether
    they are good.

    Raises RowError when it is none of them.
    """
    return recognise(row, verdict)[0]


def recognise(row: Any, verdict: str | None = None) -> tuple[str, Any]:
    """The format of a row, and the row with its columns called as that format calls them. Raises RowError."""
    format, placed = recognise_by_name(row) or _by_words(row)
    judged = format != "preference" and isinstance(placed, dict) and is_judged(placed, verdict)
    return ("label" if judged else format), placed


def _by_words(row: Mapping[str, Any]) -> tuple[str, Any]:
    lists = [(key, turns) for key in column_names.LISTS if key in row and (turns := turns_format(row[key]))]
    if len(lists) == 1 and "text" not in row:
        (key, format), *_ = lists
        return format, rename_columns(row, {TURN_COLUMNS[format]: key})
    if not lists and (form := column_names.layout_of(row)):
        return form[0], rename_columns(row, form[1])
    if len(marked := [key for key, value in row.items() if known_templates.template_of(value)]) == 1:
        return "templated", rename_columns(row, {"text": marked[0]})
    raise RowError(f"no known format has these keys ({key_list(row)}); known are {_known()}")


def _known() -> str:
    """The formats by their columns, for an error."""
    listed = [(format.name, " and ".join(format.keys)) for format in FORMATS if format.keys]
    return ", ".join(keys if name in keys else f"{keys} ({name})" for name, keys in listed)


def recognise_by_name(row: Any) -> tuple[str, Any] | None:
    """The same for a row whose columns are called as a format calls them; None for others."""
    if isinstance(row, list):
        return "messages", row
    if not isinstance(row, dict):
        raise RowError(f"a row must be an object or a list of turns, and this is {in_words(row)}")
    present = row.keys()
    for format, fits, needed, has_turns in BY_COLUMNS:
        if fits(row) if fits else present >= needed:
            return _by_turns(format, row) if has_turns else (format, row)
    return None


def _by_turns(format: str, row: Mapping[str, Any]) -> tuple[str, Any]:
    """The same for a row with a column of turns: other turns than its name says may be in it."""
    column = TURN_COLUMNS[format]
    found = turns_format(row[column])
    # turns of role and content are known to ShareGPT as well
    if found is None or found in ("messages", format):
        return format, row
    return found, rename_columns(row, {TURN_COLUMNS[found]: column})


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with columns called otherwise: ours → theirs."""
    theirs = set(columns.values())
    return {key: value for key, value in row.items() if key not in theirs} | {
        ours: row[key] for ours, key in columns.items()
    }


def turns_format(value: Any) -> str | None:
    """The format of a column of turns, as the first of them says; None where there is none, or it may be
    read in two ways.
    """
    first = standard_turn(
        _first(value) if isinstance(value, str) else value[0] if isinstance(value, list) and value else None
    )
    if not isinstance(first, dict):
        return None
    for format, is_turn in BY_TURNS:
        if is_turn(first):
            return format
    return None


def _first(value: str) -> Any:
    """The first entry of a list written as JSON in a text."""
    head = BEGIN.match(value)
    try:
        return json.JSONDecoder().raw_decode(value, head.end())[0] if head else None
    except (ValueError, RecursionError):
        return None
