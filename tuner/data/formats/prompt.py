"""Prompt and completion: `{"prompt": "…", "completion": "…"}`, each a text or a list of messages. The
completion is trained, the prompt never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.checks import RoleWords, in_words, required, text_of
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.messages import ROLES, turns
from tuner.data.formats.turns import make_conversation
from tuner.data.formats.unread_keys import Unread, unread_in_turns


def prompt(row: Mapping[str, Any], words: RoleWords = ROLES) -> Conversation:
    """A text is a turn of the user or the assistant. Raises RowError."""
    asked, said = required(row, "prompt"), required(row, "completion")
    before = (
        [Message(role="user", content=text_of(asked, "prompt"))]
        if isinstance(asked, str)
        else untrained(_listed(asked, "prompt", words))
    )
    after = (
        [Message(role="assistant", content=text_of(said, "completion"), trained=True)]
        if isinstance(said, str)
        else _listed(said, "completion", words)
    )
    return make_conversation(row, [*before, *after])


def untrained(messages: Sequence[Message]) -> list[Message]:
    """The same turns, none of them trained."""
    return [replace(message, trained=False) if message.trained else message for message in messages]


def _listed(value: Any, name: str, words: RoleWords) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"{name} must be a string or a list of messages, and this is {in_words(value)}")
    return turns(value, name, words)


def _inside(row: Mapping[str, Any], options: Options) -> Unread:
    for column in ("prompt", "completion"):
        yield from unread_in_turns(row[column], column, options.words, shares=False)


FORMAT = Format(
    name="prompt",
    version=3,
    columns=("prompt", "completion", *TURNS),
    keys=("prompt", "completion"),
    roles=ROLES,
    read=lambda row, options: (prompt(row, options.words),),
    inside=_inside,
)
