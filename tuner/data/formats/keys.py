"""Which format a row has, from its keys: those that say more are looked for first."""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.formats import oasst, preference, text
from tuner.data.formats.fields import named, told

ASKED = ("question", "query", "input", "inputs", "instruction", "prompt", "problem")
SAID = ("answer", "response", "output", "outputs", "completion", "target", "targets", "solution", "std_answer")
LISTS = ("conversation", "dialog", "dialogue", "chat", "turns")


def sniff(row: Any) -> str:
    """The format of a row, from its keys. Raises RowError when it is none of them, with what could be said to read it all the same."""
    if isinstance(row, list):
        return "messages"
    if not isinstance(row, dict):
        raise RowError(f"a row must be an object or a list of turns, and this is {told(row)}")
    if "chosen" in row and "rejected" in row:
        return "preference"
    if isinstance(row.get("label"), bool) and preference.is_labelled(row):
        return "label"
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt"
    if oasst.is_tree(row) or oasst.is_message(row):
        return "oasst"
    if text.is_marked(row.get("text")) or (text.is_marked(row.get("input")) and "output" in row):
        return "guanaco"
    if "text" in row and not _pair(row):
        return "text"
    raise RowError(f"no known format has these keys ({named(row)}); {_advice(row)}")


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    asked, said = (next((key for key in keys if isinstance(row.get(key), str)), None) for keys in (ASKED, SAID))
    return (asked, said) if asked and said else None


def _advice(row: Mapping[str, Any]) -> str:
    if pair := _pair(row):
        return f"to read it as a question and its answer: data.columns.instruction={pair[0]} data.columns.output={pair[1]}"
    if turns := next((key for key in LISTS if isinstance(row.get(key), list) and all(isinstance(turn, dict) for turn in row[key])), None):
        return f"to read {turns} as turns: data.columns.messages={turns}, or data.columns.conversations={turns} where they are of from and value"
    return (
        "known are messages, conversations (sharegpt), instruction and output (alpaca), prompt and completion, text, chosen and rejected; "
        "data.columns says where they are under other names"
    )
