"""OpenAI's chat format: `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content":
"…"}]}`, or the bare list of turns.

A content is a text, null, or a list of parts: text, reasoning, calls. Parts of one kind are joined, and stand
in the order in which a message is written: thoughts, text, calls; another order is refused, and so are
pictures, sound and files. Anthropic's `tool_use` is a call, and `tool_result` in a user's turn what a tool
answered: a turn of its own. An answer with `"weight": 0` or another of the flags is shown and not trained; on
other turns, which are never trained, these say nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from tuner.data.conversation import Call, Conversation, Message, RowError, Speaker
from tuner.data.formats.checks import (
    RoleWords,
    in_words,
    key_list,
    parse_json,
    quoted,
    required,
    speaker_of,
    text_of,
)
from tuner.data.formats.spelled import standard_turn
from tuner.data.formats.tools import calls_in_text, read_call, read_calls
from tuner.data.formats.train_flags import is_trained
from tuner.data.formats.turns import THOUGHTS, make_conversation

ROLES: RoleWords = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    **dict.fromkeys(
        ("tool", "function", "tool_response", "tool_result", "function_response", "observation", "ipython"),
        "tool",
    ),
}
CALLERS = ("function_call", "tool_call", "tool_calls")
"""roles of turns that are calls: ms-swift's and LLaMA-Factory's; the content is the call, as JSON in a
text, or a list of them
"""

REFUSED = frozenset(
    "refusal audio audios image images image_url video videos file files attachments tool_call".split()
)
"""keys of a turn that say something a message can't hold; others that aren't known, such as `id`, say
nothing about its text
"""
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


def messages(row: Any, words: RoleWords = ROLES) -> Conversation:
    """Raises RowError."""
    if isinstance(row, list):
        return make_conversation({}, turns(row, "a row", words))
    found = required(row, "messages")
    return make_conversation(
        row, turns(parse_json(found, "messages") if isinstance(found, str) else found, "messages", words)
    )


def turns(value: Any, name: str, words: RoleWords) -> list[Message]:
    """A list of turns, of which there must be one at least."""
    if not isinstance(value, list) or not value:
        raise RowError(
            f"{name} must be a list of turns with at least one in it, and this is {in_words(value)}"
        )
    value = [standard_turn(entry) for entry in value]
    if any(
        type(entry) is dict and type(entry.get("content")) is list and any(map(_is_result, entry["content"]))
        for entry in value
    ):
        return [message for entry in value for message in _unfolded(entry, words)]
    read = [turn(entry, words) for entry in value]
    return (
        join_calls(read, [entry.get("role") in CALLERS for entry in value])
        if any([message.calls for message in read])
        else read
    )


def join_calls(read: Sequence[Message], called: Sequence[bool]) -> list[Message]:
    """Turns that are calls put to the answer before them, as which the model writes them."""
    result: list[Message] = []
    for message, is_call in zip(read, called, strict=True):
        before = result[-1] if result else None
        alone = is_call and message.calls and not message.content and not message.reasoning
        if alone and before and before.role == "assistant" and before.trained == message.trained:
            result[-1] = replace(before, calls=before.calls + message.calls)
        else:
            result.append(message)
    return result


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == RESULT


def _unfolded(value: Any, words: RoleWords) -> Iterator[Message]:
    """A turn of Anthropic's, in which what tools answered may stand beside what the user says."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list) or not any(map(_is_result, content)):
        yield turn(value, words)
        return
    if speaker_of(_role(value), words) != "user":
        raise RowError(
            f"a turn of {quoted(value['role'])} has a content part of the type {RESULT!r}, which only the "
            "user's can have"
        )
    for is_result, group in groupby(content, _is_result):
        parts = list(group)
        if not is_result:
            yield turn({**value, "content": parts}, words)
            continue
        for part in parts:
            said, id_ = part.get("content"), part.get("tool_use_id")
            said = (
                _parts(said)[1]
                if isinstance(said, list)
                else ""
                if said is None
                else text_of(said, f"the content of a {RESULT}")
            )
            yield Message(
                role="tool", content=said, call_id=None if id_ is None else text_of(id_, "tool_use_id")
            )


def turn(value: Any, words: RoleWords) -> Message:
    """One turn."""
    if not isinstance(value, dict):
        raise RowError(
            'a turn must be an object such as {"role": "user", "content": "…"}, and this is '
            f"{in_words(value)}"
        )
    if (word := value.get("role")) in CALLERS and word not in words:
        others = {key: part for key, part in value.items() if key not in ("role", "content")}
        return with_calls(
            _rich({**others, "role": "assistant"}, "assistant", ""),
            calls_in_text(value.get("content"), f"the content of a {word}"),
        )
    role, content = speaker_of(_role(value), words), value.get("content")
    if len(value) == 2 and isinstance(content, str):  # nearly all
        return Message(role=role, content=text_of(content, "content"), trained=role == "assistant")
    return _rich(value, role, content)


def with_calls(message: Message, calls: tuple[Call, ...]) -> Message:
    """A turn that is a call, with those that its text holds. Raises RowError where others stand beside
    them.
    """
    if message.calls:
        raise RowError("a turn has calls both in its content and beside it, and one of them is expected")
    return replace(message, calls=calls)


def _role(value: Mapping[str, Any]) -> Any:
    if "role" not in value:
        raise RowError(f"a turn has no role (its keys are {key_list(value)}); expected are role and content")
    return value["role"]


def _rich(value: Mapping[str, Any], role: Speaker, content: Any) -> Message:
    if not REFUSED.isdisjoint(value):
        for key in sorted(REFUSED.intersection(value)):
            if value[key]:
                raise RowError(
                    f"a turn has {key}, which can't be trained; only text, reasoning and calls can"
                )
    thought, said, called = (
        _parts(content)
        if isinstance(content, list)
        else (None, None if content is None else text_of(content, "content"), [])
    )
    for key in THOUGHTS:
        if value.get(key) and (other := text_of(value[key], key)) != thought:
            if thought is not None:
                raise RowError(
                    f"a turn has two different thoughts, one of them in {key}, and one is expected"
                )
            thought = other
    beside = (read_calls(value["tool_calls"]) if value.get("tool_calls") else ()) + (
        (read_call(value["function_call"]),) if value.get("function_call") else ()
    )
    if called and beside:
        raise RowError("a turn has calls both in its content and beside it, and one of them is expected")
    called = called or list(beside)
    if role != "assistant" and (thought or called):
        raise RowError(
            f"a turn of {quoted(value['role'])} has {'reasoning' if thought else 'calls'}, which only the "
            "assistant's can have"
        )
    if said is None and "content" not in value and not thought and not called:
        raise RowError(f"a turn has no content (its keys are {key_list(value)})")
    wanted = is_trained(value, said or "")
    tool = role == "tool"
    return Message(
        role=role,
        content=said or "",
        trained=role == "assistant" and wanted,
        reasoning=thought or None,
        calls=tuple(called),
        call_id=text_of(value["tool_call_id"], "tool_call_id")
        if tool and value.get("tool_call_id") is not None
        else None,
        name=text_of(value["name"], "name") if tool and value.get("name") is not None else None,
    )


def _parts(content: Sequence[Any]) -> tuple[str | None, str, list[Call]]:
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
                f"a content part of the type {quoted(str(kind))} comes late: thoughts are expected first, "
                "then text, then calls"
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
