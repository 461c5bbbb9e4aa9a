"""OpenAI's chat format: `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content":
"…"}]}`, or the bare list of turns.

A content is a text, null, or a list of parts: text, reasoning, calls. Parts of one kind are joined, and stand
in the order in which a message is written: thoughts, text, calls; another order is refused, and so are
pictures, sound and files. Anthropic's `tool_use` is a call, and `tool_result` in a user's turn what a tool
answered: a turn of its own. An answer with `"weight": 0` or another of the flags is shown and not trained; on
other turns, which are never trained, these say nothing.

`{"messages": [{"role": "pretrain", "content": "…"}]}` is XTuner's way to write a plain text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from tuner.data.conversation import Call, Conversation, Message, RowError, Speaker, Text
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
from tuner.data.formats.content_parts import RESULT, read_parts
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.tools import calls_in_text, read_call, read_calls
from tuner.data.formats.train_flags import is_trained
from tuner.data.formats.turns import (
    CALLERS,
    REFUSED,
    THOUGHTS,
    columns_beside,
    make_conversation,
    standard_turn,
)
from tuner.data.formats.unread_keys import Unread, unread_in_turns

PRETRAIN = "pretrain"
"""the role of a turn that is a document, in XTuner's form of pre-training"""
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
                read_parts(said)[1]
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
        read_parts(content)
        if isinstance(content, list)
        else (None, None if content is None else text_of(content, "content"), [])
    )
    for key in THOUGHTS:
        if value.get(key) and (other := text_of(value[key], key)) != thought:
            if thought is not None:
                raise RowError(
                    f"a turn has two different pieces of reasoning, one of them in {key}, and one is expected"
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


def conversation_or_document(
    row: Any, key: str, words: RoleWords, read: Callable[[Any, RoleWords], Conversation]
) -> tuple[Text, ...] | tuple[Conversation]:
    """The conversation that `read` finds in a row, or its document, none where that is blank; its turns are
    in the column `key`. Raises RowError.
    """
    found = document_in(row, key, words)
    return (read(row, words),) if found is None else found


def document_in(row: Any, key: str, words: RoleWords) -> tuple[Text, ...] | None:
    """The document that a row's turns are, none where it is blank; None where they are a conversation."""
    value = row.get(key) if isinstance(row, dict) else row
    return document(parse_json(value, key) if isinstance(value, str) and PRETRAIN in value else value, words)


def document(value: Any, words: RoleWords) -> tuple[Text, ...] | None:
    """The document of a list of turns, none where it is blank; None where the turns are a conversation.
    Raises RowError for both in one row.
    """
    if not isinstance(value, list) or PRETRAIN in words or not any(_is_document(entry) for entry in value):
        return None
    if len(value) > 1:
        raise RowError(
            f"a turn of {PRETRAIN!r} is a document, which stands alone in its row, and this row has "
            f"{len(value)} turns"
        )
    said = {
        "content" if key == "value" else key: part
        for key, part in standard_turn(value[0]).items()
        if key != "from"
    }
    whole = turn({**said, "role": "assistant"}, ROLES)
    if whole.calls or whole.reasoning:
        raise RowError(
            f"a turn of {PRETRAIN!r} is a document, and this one has "
            f"{'calls' if whole.calls else 'reasoning'}"
        )
    if not whole.trained:
        raise RowError(f"a turn of {PRETRAIN!r} is trained as a whole, and this one is marked not to be")
    return (Text(text=whole.content),) if whole.trains else ()


def _is_document(entry: Any) -> bool:
    return isinstance(entry, dict) and (entry.get("role") == PRETRAIN or entry.get("from") == PRETRAIN)


def columns_beside_turns(row: Mapping[str, Any], key: str, words: RoleWords) -> frozenset[str]:
    """The columns that are read beside turns in the column `key`: none where they are a document."""
    found = columns_beside(row)
    return found if not found or document_in(row, key, words) is None else frozenset()


def _inside(row: Any, options: Options) -> Unread:
    turns = row if isinstance(row, list) else row["messages"]
    return unread_in_turns(turns, "messages", options.words, shares=False)


FORMAT = Format(
    name="messages",
    version=5,
    columns=("messages", *TURNS),
    keys=("messages",),
    is_turn=lambda turn: "role" in turn and "from" not in turn,
    roles=ROLES,
    read=lambda row, options: conversation_or_document(row, "messages", options.words, messages),
    beside=lambda row, options: columns_beside_turns(row, "messages", options.words),
    inside=_inside,
)
