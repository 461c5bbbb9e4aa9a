"""ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}], "system": "…", "tools": "…"}`.

`function_call` is JSON, `{"name", "arguments"}` or a list of them. A call, or several in a row, and the gpt's text right before
them are one message, if both are trained or neither. Text that follows a call at once is a message of its own, as a message holds its text before its calls.
`observation` is what the tool answered; the call before it may also stand in the gpt's text, as it does in many sets.
Turns of role and content are read as OpenAI's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.fields import Words, named, needed, parsed, speaker, text, told
from tuner.data.formats.messages import ROLES as OPENAI
from tuner.data.formats.messages import turn as openai_turn
from tuner.data.formats.tools import spoken
from tuner.data.formats.turns import conversation

ROLES: Words = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "tool": "tool",
    **OPENAI,
}
CALL = "function_call"


def sharegpt(row: Mapping[str, Any], words: Words = ROLES) -> Conversation:
    """Raises RowError."""
    found = needed(row, "conversations")
    listed = turns(parsed(found, "conversations") if isinstance(found, str) else found, "conversations", words)
    return conversation(row, listed, says_calls=True)


def turns(value: Any, name: str, words: Words) -> list[Message]:
    """A list of turns, of which there must be one at least."""
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} must be a list of turns with at least one in it, and this is {told(value)}")
    result: list[Message] = []
    for entry in value:
        message = turn(entry, words)
        before = result[-1] if result else None
        if before and before.role == "assistant" and before.trained == message.trained and entry.get("from") == CALL and message.calls:
            result[-1] = replace(before, calls=before.calls + message.calls)
        else:
            result.append(message)
    return result


def turn(value: Any, words: Words) -> Message:
    """One turn."""
    if not isinstance(value, dict):
        raise RowError(f'a turn must be an object such as {{"from": "human", "value": "…"}}, and this is {told(value)}')
    if "from" not in value:
        if "role" in value:
            return openai_turn(value, words)
        raise RowError(f"a turn says nowhere who speaks (its keys are {named(value)}); expected are from and value")
    word = value["from"]
    if word == CALL and word not in words:
        others = {key: part for key, part in value.items() if key not in ("from", "value")}
        message = openai_turn({"role": "assistant", "content": "", **others}, OPENAI)
        return replace(message, calls=spoken(_value(value), "the value of a function_call"))
    role = speaker(word, words)
    said = _value(value)
    if not isinstance(said, list) and said is not None:
        text(said, "value")
        if len(value) == 2:  # nearly all
            return Message(role=role, content=said, trained=role == "assistant")
    others = {key: part for key, part in value.items() if key not in ("from", "value")}
    return openai_turn({**others, "role": word, "content": said}, words)


def _value(value: Mapping[str, Any]) -> Any:
    if "value" not in value:
        raise RowError(f"a turn has no value (its keys are {named(value)})")
    return value["value"]
