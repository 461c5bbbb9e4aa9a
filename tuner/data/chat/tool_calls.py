"""Tools, calls and answers of tools, as the texts that a template has places for."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from tuner.data.conversation import Call, Message, RowError

SIGNS = string.digits + string.ascii_letters


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as transformers writes it into a prompt."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def tool_text(tool: Any, name: str, indent: int | None) -> str:
    """What can be said of a tool. `function` is the tool itself where it has none inside."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else tool
    known = inner if isinstance(inner, Mapping) else {}
    if name in ("name", "description"):
        return str(known.get(name, ""))
    if name == "raw":
        fields = [
            f'"{key}": "{text}"' if isinstance(text, str) else f'"{key}": {to_json(text)}'
            for key, text in known.items()
            if key != "return"
        ]
        return f"{{{', '.join(fields)}}}"
    return to_json(
        tool if name == "tool" else inner if name == "function" else known.get("parameters"), indent
    )


def short_id(given: str, length: int) -> str:
    """An id of `length` letters and digits: the given one if it is so already, else one made from it.

    >>> short_id("abcDEF123", 9), short_id("call_1", 9)
    ('abcDEF123', 'SjTXregcy')
    """
    if len(given) == length and given.isascii() and given.isalnum():
        return given
    number = int.from_bytes(blake2b(given.encode(), digest_size=32).digest(), "big")
    signs = []
    for _ in range(length):
        number, sign = divmod(number, len(SIGNS))
        signs.append(SIGNS[sign])
    return "".join(signs)


@dataclass(slots=True)
class PendingCall:
    """A call whose answer has not come yet."""

    call: Call
    id: str | None


class CallIds:
    """Which call an answer belongs to, through one conversation: by its id, or else the oldest one without
    an answer.
    """

    def __init__(self, id_length: int | None) -> None:
        self._length = id_length
        self._count = 0
        self._open: list[PendingCall] = []

    def call(self, call: Call) -> dict[str, str | None]:
        """What can be said of a call."""
        self._count += 1
        id_ = call.id
        if self._length is not None:
            id_ = short_id(call.id or f"call {self._count}", self._length)
        self._open.append(PendingCall(call, id_))
        return {"name": call.name, "arguments": to_json(call.arguments), "id": id_}

    def answer(self, message: Message) -> dict[str, str | None]:
        """What can be said of a tool's answer, apart from its text."""
        found = next(
            (
                pending
                for pending in self._open
                if message.call_id is not None and pending.call.id == message.call_id
            ),
            None,
        )
        if found is None and message.call_id is None:
            found = next(
                (pending for pending in self._open if message.name in (None, pending.call.name)), None
            )
        if found is not None:
            self._open.remove(found)
        given = message.call_id
        if given is not None and self._length is not None:
            given = short_id(given, self._length)
        return {
            "name": message.name or (found.call.name if found else None),
            "id": found.id if found else given,
        }


def required_value(texts: Mapping[str, str | None], name: str) -> str:
    """Raises RowError for what the row does not say."""
    text = texts[name]
    if text is None:
        raise RowError(
            f"the chat template writes the {name} of a call, and this one has none; it is expected in the "
            "call, or in the turn of the tool"
        )
    return text


def check_place(there: Sequence[Any], field: Any, what: str, name: str) -> None:
    """Raises RowError where a row has something that the template has no place for."""
    if there and not field:
        raise RowError(
            f"the row has {what}, and the chat template has no place for {what} (model.chat.{name} is empty)"
        )
