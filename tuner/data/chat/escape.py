"""Rows for a Jinja template: turns as transformers takes them, and what they spell of special tokens put
out of the way by marks.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from tuner.data.chat.tool_calls import to_json
from tuner.data.conversation import Conversation, Message, RowError


def transformers_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as transformers takes them."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            entry["reasoning_content"] = message.reasoning
        if message.calls:
            entry["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                | ({} if call.id is None else {"id": call.id})
                for call in message.calls
            ]
        if message.call_id is not None:
            entry["tool_call_id"] = message.call_id
        if message.name is not None:
            entry["name"] = message.name
        turns.append(entry)
    return turns


def all_texts(messages: Sequence[Message], tools: Sequence[Any]) -> Iterator[str]:
    """All that a row says, as texts."""
    for message in messages:
        yield message.content
        yield message.reasoning or ""
        for call in message.calls:
            yield call.name + to_json(call.arguments)
    for tool in tools:
        yield to_json(tool)


def with_sign(content: str, sign: str) -> str:
    """A text with a sign in front of its first character that is no white space."""
    bare = content.lstrip()
    return f"{content[: len(content) - len(bare)]}{sign}{bare}"


def unescape(text: str, marks: Mapping[str, str]) -> str:
    return MARK.sub(lambda mark: marks[mark[0]], text) if marks else text


MARK = re.compile("\ue000\\d+\ue001")


def escape_special_tokens(
    messages: Sequence[Message], tools: Sequence[Any], spelled: re.Pattern[str]
) -> tuple[Conversation, Mapping[str, str]]:
    """The row with a mark in place of each special token that it spells; and what the marks stand for."""
    marks: dict[str, str] = {}
    numbers = count()

    def hide(value: Any) -> Any:
        if isinstance(value, str):
            return spelled.sub(mark, value)
        if isinstance(value, Mapping):
            return {hide(key): hide(inner) for key, inner in value.items()}
        return [hide(inner) for inner in value] if isinstance(value, list | tuple) else value

    def mark(token: Any) -> str:
        sign = f"\ue000{next(numbers)}\ue001"
        marks[sign] = token[0]
        return sign

    def part(message: Message) -> Message:
        calls = tuple(
            replace(call, name=hide(call.name), arguments=hide(call.arguments)) for call in message.calls
        )
        reasoning = hide(message.reasoning) if message.reasoning else message.reasoning
        return replace(
            message, content=hide(message.content), reasoning=reasoning, calls=calls, name=hide(message.name)
        )

    if not any(spelled.search(text) for text in all_texts(messages, tools)):
        return Conversation(messages=tuple(messages), tools=tuple(tools)), marks
    if any("\ue000" in text for text in all_texts(messages, tools)):
        raise RowError(
            "the row spells a special token and has a character U+E000, which is put in place of such a token"
        )
    return Conversation(
        messages=tuple(part(message) for message in messages), tools=tuple(hide(tool) for tool in tools)
    ), marks
