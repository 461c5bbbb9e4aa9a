"""Prompt and completion: `{"prompt": "…", "completion": "…"}`, each a text or a list of messages. The
completion is trained, the prompt never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.fields import Words, needed, text, told
from tuner.data.formats.messages import ROLES, turns
from tuner.data.formats.turns import conversation


def prompt(row: Mapping[str, Any], words: Words = ROLES) -> Conversation:
    """A text is a turn of the user or the assistant. Raises RowError."""
    asked, said = needed(row, "prompt"), needed(row, "completion")
    before = (
        [Message(role="user", content=text(asked, "prompt"))]
        if isinstance(asked, str)
        else shown(_listed(asked, "prompt", words))
    )
    after = (
        [Message(role="assistant", content=text(said, "completion"), trained=True)]
        if isinstance(said, str)
        else _listed(said, "completion", words)
    )
    return conversation(row, [*before, *after])


def shown(messages: Sequence[Message]) -> list[Message]:
    """The same turns, none of them trained."""
    return [replace(message, trained=False) if message.trained else message for message in messages]


def _listed(value: Any, name: str, words: Words) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"{name} must be a text or a list of messages, and this is {told(value)}")
    return turns(value, name, words)
