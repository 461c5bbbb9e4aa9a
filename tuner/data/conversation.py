"""What a row becomes: a conversation, a plain text, or a preference; and what is done to a conversation
before it is written as tokens.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

Speaker = Literal["system", "user", "assistant", "tool"]

PLACE = re.compile(r"\{\{(\w+)\}\}")
TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
"""between what logs and data sets write a thought"""
OPENED = re.compile(rf"\s*({'|'.join(map(re.escape, TAGS))})")
SOLUTION = re.compile(r"<\|begin_of_solution\|>\s*(.*?)\s*(?:<\|end_of_solution\|>\s*)?\Z", re.DOTALL)
"""what goes with <|begin_of_thought|>"""
QUOTES = "`'\"“”„«»"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A tool that the assistant calls."""

    name: str
    arguments: Any
    """a JSON value, as a rule an object; never JSON in a text"""
    id: str | None = None
    """by which a tool's answer refers to it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn."""

    role: Speaker
    """who speaks; `tool` is what a tool answered"""
    content: str = ""
    """the text, as the row has it: never stripped, never parsed for special tokens"""
    trained: bool = False
    """whether the loss should be on it; only an assistant's turn can be"""
    reasoning: str | None = None
    """what the assistant thought before it spoke, without any marks around it"""
    calls: tuple[Call, ...] = ()
    """of the assistant"""
    call_id: str | None = None
    """of a tool's answer: the call that it answers"""
    name: str | None = None
    """of a tool's answer: the tool"""

    @property
    def trains(self) -> bool:
        """Whether the loss is on it: an answer without text would teach silence."""
        return self.trained and bool(self.calls or self.content.strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns in their order."""

    messages: tuple[Message, ...]
    """at least one"""
    tools: tuple[Any, ...] = ()
    """what the assistant may call: JSON values as the row has them, in OpenAI's form ({"type": "function",
    "function": {…}})
    """

    @property
    def trains(self) -> bool:
        """Whether the loss is on any turn."""
        return any(message.trains for message in self.messages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A plain text, for continued pre-training: all of it is trained."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Two ways to go on from the same turns, the first of which is better."""

    prompt: Conversation
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A conversation whose last answer was found good or bad."""

    conversation: Conversation
    good: bool


Sample = Conversation | Text | Preference | Label


class DocumentRole(IntEnum):
    """What a document is where answers are compared; its number stands in the packs."""

    NONE = 0
    """nothing is compared"""
    CHOSEN = 1
    """the better answer of two; the other one follows it"""
    REJECTED = 2
    GOOD = 3
    """an answer that was found good, by itself"""
    BAD = 4


def compared(sample: Preference | Label) -> tuple[tuple[DocumentRole, Conversation], ...]:
    """The conversations that end in the answers of a comparison, and what each of them is."""
    if isinstance(sample, Label):
        return ((DocumentRole.GOOD if sample.good else DocumentRole.BAD, sample.conversation),)
    sides = ((DocumentRole.CHOSEN, sample.chosen), (DocumentRole.REJECTED, sample.rejected))
    before = sample.prompt.messages
    return tuple((role, replace(sample.prompt, messages=(*before, *answer))) for role, answer in sides)


class RowError(Exception):
    """A row that can't be taken; the message says what was found and what was expected, and who reads the
    file adds where.
    """


class LeftOut(Exception):
    """A row that can be read and is not wanted; the message is the reason, as the ledger counts it."""


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """Put `system` in front of a conversation that has no system turn of its own."""
    if system is None or any(message.role == "system" for message in conversation.messages):
        return conversation
    return replace(conversation, messages=(Message(role="system", content=system), *conversation.messages))


def fill(conversation: Conversation, words: Mapping[str, str]) -> Conversation:
    """Replace each `{{key}}` by its word, in every turn; without `words` the texts stay as they are.

    A word is put in as it is: places inside it are not looked at again.
    Raises RowError for a place that has no word.
    """
    if not words:
        return conversation

    def word(place: re.Match[str]) -> str:
        if place[1] not in words:
            known = ", ".join(f"data.fill.{key}" for key in words)
            raise RowError(
                f"the text has the place {place[0]} and data.fill has no word for it (it has {known}). Add "
                f"data.fill.{place[1]}=…"
            )
        return words[place[1]]

    return replace(
        conversation,
        messages=tuple(
            replace(message, content=PLACE.sub(word, message.content)) for message in conversation.messages
        ),
    )


def split_reasoning(conversation: Conversation) -> Conversation:
    """Take the thought that an answer's text begins with out of it, into its own field: `<think>…</think>`,
    or another of TAGS.

    What stands before a `</think>` that nothing opens is the thought: templates that open it in the prompt
    leave logs without `<think>`. Raises RowError for an answer that is trained and begins a thought that
    doesn't end.
    """
    if not any(
        message.role == "assistant" and _may_think(message.content) for message in conversation.messages
    ):
        return conversation
    return replace(conversation, messages=tuple(map(_apart, conversation.messages)))


def _may_think(content: str) -> bool:
    return "</think>" in content or OPENED.match(content) is not None


def _apart(message: Message) -> Message:
    content = message.content
    if message.role != "assistant" or message.reasoning is not None or not _may_think(content):
        return message
    opened = OPENED.match(content)
    start, close = (opened.end(), TAGS[opened[1]]) if opened else (0, "</think>")
    end = content.find(close, start)
    if end < 0:
        if opened and message.trains:
            raise RowError(
                f"an answer begins a thought with {opened[1]} and never ends it with {close}, so it was cut "
                "off before it said anything; data.bad_rows=skip leaves such rows out, and data.reasoning "
                "does not"
            )
        return message
    thought, said = content[start:end], content[end + len(close) :]
    if not opened and ("<think>" in thought or (thought[-1:] in QUOTES and said[:1] in QUOTES)):
        return message  # it speaks of the tag
    said = said.lstrip()
    if close == "<|end_of_thought|>" and (solution := SOLUTION.match(said)):
        said = solution[1]
    return replace(message, reasoning=thought.strip("\n"), content=said)


def without_reasoning(conversation: Conversation) -> Conversation:
    """The same, as if the assistant had not thought."""
    return replace(
        conversation,
        messages=tuple(
            replace(message, reasoning=None) for message in split_reasoning(conversation).messages
        ),
    )


def last_only(conversation: Conversation) -> Conversation:
    """The same, with the loss on the last turn that trains, and on no other."""
    last = max((i for i, message in enumerate(conversation.messages) if message.trains), default=-1)
    return replace(
        conversation,
        messages=tuple(replace(m, trained=i == last) for i, m in enumerate(conversation.messages)),
    )


def every_turn(conversation: Conversation) -> Iterator[Conversation]:
    """One conversation for each turn that trains, which is its last: so each is written as it was when the
    assistant had to speak.
    """
    for i, message in enumerate(conversation.messages):
        if message.trains:
            yield last_only(replace(conversation, messages=conversation.messages[: i + 1]))


def exchanges(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """Turns in groups that can stand alone: each begins where a person speaks after an answer.

    >>> [len(group) for group in exchanges([Message(role=r) for r in ("user", "assistant", "tool",
    ...     "assistant", "user", "assistant")])]
    [4, 2]
    """
    group: list[Message] = []
    for message in messages:
        if message.role == "user" and any(m.role == "assistant" for m in group):
            yield tuple(group)
            group = []
        group.append(message)
    if group:
        yield tuple(group)
