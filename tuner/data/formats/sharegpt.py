"""ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}], "system":
"…", "tools": "…"}`.

`function_call` (and `tool_call`) is JSON, `{"name", "arguments"}` or a list of them. A call, or several in a
row, and the gpt's text right before them are one message, if both are trained or neither. Text that follows a
call at once is a message of its own, as a message holds its text before its calls. `observation` is what the
tool answered; the call before it may also stand in the gpt's text, as it does in many sets. Turns of role and
content are read as OpenAI's.
"""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats import messages
from tuner.data.formats.checks import RoleWords, in_words, key_list, parse_json, required, speaker_of, text_of
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.messages import columns_beside_turns, conversation_or_document, join_calls, with_calls
from tuner.data.formats.tools import calls_in_text
from tuner.data.formats.turns import CALLERS, make_conversation, standard_turn
from tuner.data.formats.unread_keys import Unread, unread_in_turns

ROLES: RoleWords = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    **messages.ROLES,
}


def sharegpt(row: Mapping[str, Any], words: RoleWords = ROLES) -> Conversation:
    """Raises RowError."""
    found = required(row, "conversations")
    listed = turns(
        parse_json(found, "conversations") if isinstance(found, str) else found, "conversations", words
    )
    return make_conversation(row, listed, says_calls=True)


def turns(value: Any, name: str, words: RoleWords) -> list[Message]:
    """A list of turns, of which there must be one at least."""
    if not isinstance(value, list) or not value:
        raise RowError(
            f"{name} must be a list of turns with at least one in it, and this is {in_words(value)}"
        )
    value = [standard_turn(entry) for entry in value]
    read = [turn(entry, words) for entry in value]
    return (
        join_calls(read, [entry.get("from", entry.get("role")) in CALLERS for entry in value])
        if any([message.calls for message in read])
        else read
    )


def turn(value: Any, words: RoleWords) -> Message:
    """One turn."""
    if not isinstance(value, dict):
        raise RowError(
            'a turn must be an object such as {"from": "human", "value": "…"}, and this is '
            f"{in_words(value)}"
        )
    if "from" not in value:
        if "role" in value:
            return messages.turn(value, words)
        raise RowError(
            f"a turn says nowhere who speaks (its keys are {key_list(value)}); expected are from and value"
        )
    word = value["from"]
    if word in CALLERS and word not in words:
        others = {key: part for key, part in value.items() if key not in ("from", "value")}
        message = messages.turn({"role": "assistant", "content": "", **others}, messages.ROLES)
        return with_calls(message, calls_in_text(_value(value), f"the value of a {word}"))
    role = speaker_of(word, words)
    said = _value(value)
    if not isinstance(said, list) and said is not None:
        text_of(said, "value")
        if len(value) == 2:  # nearly all
            return Message(role=role, content=said, trained=role == "assistant")
    others = {key: part for key, part in value.items() if key not in ("from", "value")}
    return messages.turn({**others, "role": word, "content": said}, words)


def _value(value: Mapping[str, Any]) -> Any:
    if "value" not in value:
        raise RowError(f"a turn has no value (its keys are {key_list(value)})")
    return value["value"]


def _inside(row: Mapping[str, Any], options: Options) -> Unread:
    return unread_in_turns(row["conversations"], "conversations", options.words)


FORMAT = Format(
    name="sharegpt",
    version=5,
    columns=("conversations", *TURNS),
    keys=("conversations",),
    is_turn=lambda turn: "from" in turn and "role" not in turn,
    roles=ROLES,
    read=lambda row, options: conversation_or_document(row, "conversations", options.words, sharegpt),
    beside=lambda row, options: columns_beside_turns(row, "conversations", options.words),
    inside=_inside,
)
