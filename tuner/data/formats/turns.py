"""What holds of turns in every format: what else the row says of them, and in which order they may come.

Two turns of one role in a row, an answer first, a system turn in the middle and empty turns are kept as they
are: the chat template decides whether it can write them. An empty answer is shown and not trained. Calls that
nobody answered are trained like others. A tool's answer needs a call before it, and one that names a call
needs that one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.checks import key_list, quoted, text_of
from tuner.data.formats.tools import ALSO, OFFERED, is_offer, offered_tools
from tuner.data.formats.train_flags import FLAGS, NO, YES, flag_columns, is_flag_list

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
SYSTEM = ("system", "system_prompt", "system_message", "systemPrompt", "sys_prompt")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
BESIDE = frozenset((*SYSTEM, *OFFERED, *ALSO, *MEDIA, *THOUGHTS, *YES, *NO))
"""columns that may say something about the turns"""
WHO = ("role", "from", "speaker", "author", "sender")
WHAT = ("content", "value", "text", "utterance", "message")
"""how a turn says who speaks, and what is said"""
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
SHORT = re.compile(r"\S{,12}")
"""what stands under `reasoning` and is a switch, such as "on", and no thought"""


def standard_turn(turn: Any) -> Any:
    """A turn with the keys role and content, or from and value, where it has one key of each kind under
    another name; else as it is.
    """
    # nearly all
    if (
        not isinstance(turn, dict)
        or ("role" in turn and "content" in turn)
        or ("from" in turn and "value" in turn)
    ):
        return turn
    who = [key for key in WHO if isinstance(turn.get(key), str)]
    what = [key for key in WHAT if turn.get(key) is not None]
    if len(who) != 1 or len(what) != 1:
        return turn
    ours = ("from", "value") if who[0] == "from" else ("role", "content")
    return dict(zip(ours, (turn[who[0]], turn[what[0]]), strict=True)) | {
        key: part for key, part in turn.items() if key not in (*who, *what)
    }


def make_conversation(
    row: Mapping[str, Any], messages: Sequence[Message], *, says_calls: bool = False, compared: bool = False
) -> Conversation:
    """The turns of a row with what else it says of them: a system prompt, tools, the thought of the last
    answer, flags. Pictures are refused.

    says_calls   a call may stand in an answer's text, as it does in many ShareGPT sets, so any answer may
                 have been one
    compared     there are two last answers, so that a thought beside them, or flags, are of neither
    """
    offered: tuple[Any, ...] = ()
    if not BESIDE.isdisjoint(row):
        for key in MEDIA:
            if row.get(key):
                raise RowError(f"the row has {key}, and only text can be trained")
        offered = offered_tools(row)
        if not compared:
            messages = _flagged(flag_columns(row), _with_thought(row, messages))
        for key in SYSTEM:
            if row.get(key) not in (None, ""):
                messages = _with_system(text_of(row[key], key), key, messages)
    if any([message.role == "tool" for message in messages]):
        check_tool_answers(messages, says_calls=says_calls)
    return Conversation(messages=tuple(messages), tools=offered)


def columns_beside(row: Mapping[str, Any], *, compared: bool = False) -> frozenset[str]:
    """The columns that `make_conversation` reads of a row."""
    found = BESIDE.intersection(row)
    return frozenset(key for key in found if _reads(key, row[key], compared)) if found else found


def _reads(key: str, value: Any, compared: bool) -> bool:
    if key in THOUGHTS:
        return not compared and is_thought(key, value)
    if key in FLAGS:
        return not compared and is_flag_list(value, key)
    return key not in ALSO or is_offer(value)


def is_thought(key: str, value: Any) -> bool:
    """Whether a column holds what was thought, and not how much."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and (key == THOUGHTS[0] or SHORT.fullmatch(value.strip()) is None)
    )


def _with_thought(row: Mapping[str, Any], messages: Sequence[Message]) -> Sequence[Message]:
    found = {key: text_of(row[key], key) for key in THOUGHTS if is_thought(key, row.get(key))}
    if not found:
        return messages
    key, thought = next(iter(found.items()))
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        raise RowError(f"the row has {key}, and no answer that it could belong to")
    own = messages[last].reasoning
    if {*found.values(), *([own] if own else ())} != {thought} or (
        "</think>" in messages[last].content and thought not in messages[last].content
    ):
        raise RowError(
            f"the last answer has two different pieces of reasoning, one of them in {key}, and one is "
            "expected"
        )
    if own or "</think>" in messages[last].content:
        return messages
    return [*messages[:last], replace(messages[last], reasoning=thought), *messages[last + 1 :]]


def _flagged(flags: Mapping[str, Sequence[bool]], messages: Sequence[Message]) -> Sequence[Message]:
    for key, wanted in flags.items():
        if len(wanted) != len(messages):
            raise RowError(
                f"{key} has {len(wanted)} entries beside {len(messages)} turns, and one for each is expected"
            )
        messages = [
            message if is_wanted else replace(message, trained=False)
            for message, is_wanted in zip(messages, wanted, strict=True)
        ]
    return messages


def _with_system(system: str, key: str, messages: Sequence[Message]) -> Sequence[Message]:
    first = messages[0]
    if first.role != "system":
        return (Message(role="system", content=system), *messages)
    if first.content != system:
        raise RowError(
            f"the row has a column `{key}` and a system turn that says something else, and one of them is "
            "expected"
        )
    return messages


def check_tool_answers(messages: Sequence[Message], *, says_calls: bool) -> None:
    """Refuse a tool's answer to no call."""
    ids: set[str] = set()
    asked: Message | None = None
    for message in messages:
        if message.role != "tool":
            asked = message
            ids.update(call.id for call in message.calls if call.id is not None)
        elif message.call_id in ids:
            continue
        elif asked is None or asked.role != "assistant" or not (asked.calls or says_calls):
            raise RowError(
                "a tool result follows no call; expected before it is a turn of the assistant that calls the "
                "tool"
            )
        elif message.call_id is not None and ids:
            raise RowError(
                f"a tool answers the call {quoted(message.call_id)}, and there is none of that id (there are "
                f"{key_list(sorted(ids))})"
            )
