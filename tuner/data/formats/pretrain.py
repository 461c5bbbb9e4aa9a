"""A plain text in the clothes of a turn: XTuner's `{"messages": [{"role": "pretrain", "content": "…"}]}`."""

from collections.abc import Callable
from typing import Any

from tuner.data.conversation import Conversation, RowError, Text
from tuner.data.formats.checks import RoleWords, parse_json
from tuner.data.formats.messages import ROLES, turn
from tuner.data.formats.spelled import standard_turn

ROLE = "pretrain"


def document_or_conversation(
    row: Any, key: str, words: RoleWords, read: Callable[[Any, RoleWords], Conversation]
) -> tuple[Text, ...] | tuple[Conversation]:
    """The document of a row, none where it is blank, or the conversation that `read` finds in it; its
    turns are in the column `key`. Raises RowError.
    """
    value = row.get(key) if isinstance(row, dict) else row
    found = document(parse_json(value, key) if isinstance(value, str) and ROLE in value else value, words)
    return (read(row, words),) if found is None else found


def document(value: Any, words: RoleWords) -> tuple[Text, ...] | None:
    """The document of a list of turns, none where it is blank; None where the turns are a conversation.
    Raises RowError for both in one row.
    """
    if not isinstance(value, list) or ROLE in words or not any(_is_document(entry) for entry in value):
        return None
    if len(value) > 1:
        raise RowError(
            f"a turn of {ROLE!r} is a document, which stands alone in its row, and this row has {len(value)} "
            "turns"
        )
    said = {
        "content" if key == "value" else key: part
        for key, part in standard_turn(value[0]).items()
        if key != "from"
    }
    whole = turn({**said, "role": "assistant"}, ROLES)
    if whole.calls or whole.reasoning:
        raise RowError(
            f"a turn of {ROLE!r} is a document, and this one has {'calls' if whole.calls else 'reasoning'}"
        )
    if not whole.trained:
        raise RowError(f"a turn of {ROLE!r} is trained as a whole, and this one is marked not to be")
    return (Text(text=whole.content),) if whole.trains else ()


def _is_document(entry: Any) -> bool:
    return isinstance(entry, dict) and (entry.get("role") == ROLE or entry.get("from") == ROLE)
