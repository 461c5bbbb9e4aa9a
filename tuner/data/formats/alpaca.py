"""Stanford Alpaca: `{"instruction": "…", "input": "…", "output": "…"}`, and optionally `system` and
`history`, a list of [question, answer] or of turns."""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.fields import needed, text, told
from tuner.data.formats.sharegpt import ROLES, turns
from tuner.data.formats.turns import conversation


def alpaca(row: Mapping[str, Any]) -> Conversation:
    """The input, where there is one, follows the instruction on a line of its own. Answers of the history
    are trained too. Raises RowError.
    """
    messages = _history(row["history"]) if row.get("history") else []
    messages.append(question(row))
    messages.append(Message(role="assistant", content=text(needed(row, "output"), "output"), trained=True))
    return conversation(row, messages)


def question(row: Mapping[str, Any]) -> Message:
    """What is asked."""
    asked = text(needed(row, "instruction"), "instruction")
    more = row.get("input")
    if more not in (None, ""):
        more = text(more, "input")
        asked = f"{asked}\n{more}" if asked else more
    return Message(role="user", content=asked)


def _history(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"history must be a list of [question, answer], and this is {told(value)}")
    if all(isinstance(entry, dict) for entry in value):
        return turns(value, "history", ROLES)
    messages = []
    for exchange in value:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError(
                f"history must be a list of [question, answer], and one of them is {told(exchange)}"
            )
        messages.append(Message(role="user", content=text(exchange[0], "history")))
        messages.append(Message(role="assistant", content=text(exchange[1], "history"), trained=True))
    return messages
