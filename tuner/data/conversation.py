"""A conversation: what every format becomes, and what the chat template writes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tuner.errors import DataError

Speaker = Literal["system", "user", "assistant"]

PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn."""

    role: Speaker
    """who speaks"""
    content: str
    """the text, as the row has it: never stripped, never parsed for special tokens"""
    trained: bool = False
    """whether the loss should be on it; only an assistant's turn can be"""

    @property
    def trains(self) -> bool:
        """Whether the loss is on it: an answer without text would teach silence."""
        return self.trained and bool(self.content.strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns in their order, and the place they came from."""

    messages: tuple[Message, ...]
    """at least one"""
    file: int = 0
    """index of the file in the ledger's sources"""
    line: int = 1
    """line of a JSONL file or number of the item in a JSON list, from 1"""

    @property
    def trains(self) -> bool:
        """Whether the loss is on any turn."""
        return any(message.trains for message in self.messages)


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """Put `system` in front of a conversation that has no system turn of its own."""
    if system is None or any(message.role == "system" for message in conversation.messages):
        return conversation
    return replace(conversation, messages=(Message(role="system", content=system), *conversation.messages))


def fill(conversation: Conversation, words: Mapping[str, str]) -> Conversation:
    """Replace each `{{key}}` by its word, in every turn; without `words` the texts stay as they are.

    A word is put in as it is: places inside it are not looked at again.
    Raises DataError (without the file's name, which the caller knows) for a place that has no word.
    """
    if not words:
        return conversation

    def word(place: re.Match[str]) -> str:
        if place[1] not in words:
            known = ", ".join(f"data.fill.{key}" for key in words)
            raise DataError(f"the text has the place {place[0]} and data.fill has no word for it (it has {known}). Add data.fill.{place[1]}=…")
        return words[place[1]]

    return replace(conversation, messages=tuple(replace(message, content=PLACE.sub(word, message.content)) for message in conversation.messages))
