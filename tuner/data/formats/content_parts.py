"""The parts of a turn's content, where it is a list: text, thoughts, calls, and what tools answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.data.conversation import Call, RowError
from tuner.data.formats.checks import in_words, quoted, text_of
from tuner.data.formats.tools import calls_in_text, read_call

KINDS = {
    "text": 1,
    "input_text": 1,
    "output_text": 1,
    "reasoning": 0,
    "thinking": 0,
    "tool_call": 2,
    "tool_use": 2,
    "function_call": 2,
}
"""types of parts → their place in a message"""
RESULT = "tool_result"
WHERE = (("text", "value"), ("text", "value"), ("value", "tool_call", "function_call", "text"))
"""by that place, the keys of a part in which it may stand"""


def read_parts(content: Sequence[Any]) -> tuple[str | None, str, list[Call]]:
    """Thoughts, text and calls."""
    thoughts: list[str] = []
    texts: list[str] = []
    called: list[Call] = []
    last = 0
    for part in content:
        if not isinstance(part, dict):
            raise RowError(
                'a part of a content must be an object such as {"type": "text", "text": "…"}, and this is'
                f" {in_words(part)}"
            )
        kind = part.get("type")
        place = KINDS.get(kind) if isinstance(kind, str) else None
        if place is None:
            raise RowError(
                f"a content part of the type {quoted(kind) if isinstance(kind, str) else in_words(kind)} "
                f"can't be trained; only {', '.join(KINDS)}"
            )
        if place < last:
            raise RowError(
                f"a content part of the type {quoted(str(kind))} is out of order: reasoning is expected "
                "first, then text, then calls"
            )
        last = place
        if place == 2:
            called += (
                [read_call(part)]
                if part.get("name") is not None
                else calls_in_text(_inside(part, *WHERE[2]), f"a {kind}")
            )
        elif place == 1:
            texts.append(text_of(_inside(part, *WHERE[1]), "the text of a part"))
        else:
            thoughts.append(text_of(_inside(part, *WHERE[0], str(kind)), "the reasoning of a part"))
    return "\n".join(thoughts) if thoughts else None, "".join(texts), called


def _inside(part: Mapping[str, Any], *keys: str) -> Any:
    return next((part[key] for key in keys if part.get(key) is not None), None)


def unread_keys_of_part(part: Any) -> list[str]:
    """The keys of a part that are not read."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == RESULT:
        return [key for key in part if key not in ("type", "content", "tool_use_id")]
    place = KINDS.get(kind) if isinstance(kind, str) else None
    if place is None or (place == 2 and part.get("name") is not None):
        return []  # refused, or read to its last key
    taken = next((key for key in (*WHERE[place], str(kind)) if part.get(key) is not None), None)
    return [key for key in part if key not in ("type", taken)]
