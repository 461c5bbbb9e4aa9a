"""Stanford Alpaca: `{"instruction": "…", "input": "…", "output": "…"}`, and optionally `system` and
`history`, a list of [question, answer] or of turns."""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.checks import in_words, required, text_of
from tuner.data.formats.format import TURNS, Format
from tuner.data.formats.sharegpt import ROLES, turns
from tuner.data.formats.turns import make_conversation


def alpaca(row: Mapping[str, Any]) -> Conversation:
    """The input, where there is one, follows the instruction on a line of its own. Answers of the history
    are trained too. Raises RowError.
    """
    messages = _history(row["history"]) if row.get("history") else []
    messages.append(question(row))
    messages.append(
        Message(role="assistant", content=text_of(required(row, "output"), "output"), trained=True)
    )
    return make_conversation(row, messages)


def question(row: Mapping[str, Any]) -> Message:
    """What is asked."""
    asked = text_of(required(row, "instruction"), "instruction")
    more = row.get("input")
    if more not in (None, ""):
        more = text_of(more, "input")
        asked = f"{asked}\n{more}" if asked else more
    return Message(role="user", content=asked)


def _history(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"history must be a list of [question, answer], and this is {in_words(value)}")
    if all(isinstance(entry, dict) for entry in value):
        return turns(value, "history", ROLES)
    messages = []
    for exchange in value:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError(
                f"history must be a list of [question, answer], and one of them is {in_words(exchange)}"
            )
        messages.append(Message(role="user", content=text_of(exchange[0], "history")))
        messages.append(Message(role="assistant", content=text_of(exchange[1], "history"), trained=True))
    return messages


FORMAT = Format(
    name="alpaca",
    version=4,
    columns=("instruction", "input", "output", "history", *TURNS),
    keys=("instruction", "output"),
    roles=ROLES,
    read=lambda row, _: (alpaca(row),),
)
