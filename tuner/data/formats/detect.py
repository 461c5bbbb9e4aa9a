"""Which format a row has, from its keys: those that say more are looked for first; then known sets whose
columns are called otherwise.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.formats import column_names, known_templates, oasst, preference, text, xtuner
from tuner.data.formats.checks import in_words, key_list
from tuner.data.formats.spelled import standard_turn

TURN_COLUMNS = {"messages": "messages", "sharegpt": "conversations", "xtuner": "conversation"}
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
    judged = format != "preference" and isinstance(placed, dict) and preference.is_judged(placed, verdict)
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
    raise RowError(
        f"no known format has these keys ({key_list(row)}); known are messages, conversations (sharegpt), "
        "conversation (xtuner), instruction and output (alpaca), prompt and completion, text, chosen and "
        "rejected"
    )


def recognise_by_name(row: Any) -> tuple[str, Any] | None:
    """The same for a row whose columns are called as a format calls them; None for others."""
    if isinstance(row, list):
        return "messages", row
    if not isinstance(row, dict):
        raise RowError(f"a row must be an object or a list of turns, and this is {in_words(row)}")
    if "chosen" in row and "rejected" in row:
        return "preference", row
    for format in ("messages", "sharegpt"):
        if (key := TURN_COLUMNS[format]) in row:
            turns = turns_format(row[key])
            # turns of role and content are known to ShareGPT as well
            return (
                (format, row)
                if turns in (None, "messages", format)
                else (str(turns), rename_columns(row, {TURN_COLUMNS[str(turns)]: key}))
            )
    if "instruction" in row and "output" in row:
        return "alpaca", row
    if "prompt" in row and "completion" in row:
        return "prompt", row
    if oasst.is_tree(row) or oasst.is_message(row):
        return "oasst", row
    if text.is_guanaco(row.get("text")) or (text.is_guanaco(row.get("input")) and "output" in row):
        return "guanaco", row
    if "text" in row and not column_names.is_pair(row):
        return "text", row
    return None


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
    if "from" in first:
        return "sharegpt" if "role" not in first else None
    return "messages" if "role" in first else "xtuner" if xtuner.exchange_keys(first) else None


def _first(value: str) -> Any:
    """The first entry of a list written as JSON in a text."""
    head = BEGIN.match(value)
    try:
        return json.JSONDecoder().raw_decode(value, head.end())[0] if head else None
    except (ValueError, RecursionError):
        return None
