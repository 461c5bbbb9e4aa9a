"""Texts that a chat template wrote: `{"text":
"<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n"}` → the conversation.

The marks (`templates`) are gone from the turns: the model's own template writes them anew, as special tokens.
A turn that is ended is kept to the letter; white space around one that only the next turn ends is the form's.
What doesn't fit is a RowError: a turn without its end, text between turns, a role that is not known, marks of
a template inside of a turn (calls of tools among them).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.checks import RoleWords, quoted, required, text_of
from tuner.data.formats.format import TURNS, Format
from tuner.data.formats.known_templates import (
    CLOSED,
    FIRST,
    MARK,
    ROLES,
    KnownTemplate,
    first_turn_at,
    role_of,
    template_of,
)
from tuner.data.formats.turns import make_conversation

SYSTEM = re.compile(r"\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)
"""in front of Llama 2's first question"""


def is_templated_conversation(value: str) -> bool:
    """Whether a text is a conversation with an answer."""
    try:
        return any(message.trains for message in templated({"text": value}).messages)
    except RowError:
        return False


def templated(row: Mapping[str, Any], words: RoleWords = ROLES) -> Conversation:
    """The conversation of a row whose text a chat template wrote. Raises RowError."""
    found = text_of(required(row, "text"), "text")
    form = template_of(found)
    if form is None:
        mark = MARK.match(found, first_turn_at(found))
        begins = (
            f"begins with {mark[0]}, a mark of no template that is known"
            if mark
            else f"begins with no mark of a chat template ({quoted(found)})"
        )
        raise RowError(f"the text {begins}; data.format=text trains such texts as they stand")
    return make_conversation(row, _sound(form, _joined(form, _turns(found, form, words))), says_calls=True)


PAIRS = {"prompt": ("prompt", "completion"), "alpaca": ("instruction", "output")}
"""formats of a question and its answer → the two columns"""


def templated_pair(row: Mapping[str, Any], format: str) -> tuple[str, str] | None:
    """The question and the answer of a row, where a template wrote the question, with nothing beside it."""
    asked, said = (row.get(key) for key in PAIRS.get(format, ("", "")))
    alone = not (format == "alpaca" and (row.get("input") or row.get("history")))
    return (
        (asked, said)
        if isinstance(asked, str) and isinstance(said, str) and alone and template_of(asked)
        else None
    )


def continued(row: Mapping[str, Any], words: RoleWords = ROLES) -> Conversation:
    """The conversation of a row whose question a template wrote, up to where the assistant goes on; only
    the answer is trained. Raises RowError.
    """
    asked, said = next(pair for format in PAIRS if (pair := templated_pair(row, format)))
    asked, said = text_of(asked, "the question"), text_of(said, "the answer")
    form = template_of(asked)
    assert form is not None
    before = [
        replace(message, trained=False) for message in _sound(form, _joined(form, _turns(asked, form, words)))
    ]
    if not before or before[-1].role == "assistant":
        raise RowError(
            "the question ends with an answer, as a chat template writes it, and what follows it was "
            "expected to be one"
        )
    if form.head.match(said, first_turn_at(said)):
        after = _sound(form, _joined(form, _turns(said, form, words)))
    else:
        after = _sound(form, [Message(role="assistant", content=_ended(form, said)[0], trained=True)])
    return make_conversation(row, [*before, *after], says_calls=True)


def _sound(form: KnownTemplate, messages: Iterable[Message]) -> list[Message]:
    """The messages, none of which holds a mark. Raises RowError."""
    found = list(messages)
    systems = [message.content for message in found if message.role == "system"]
    if len(set(systems)) < len(systems):
        raise RowError(
            "the same system prompt stands twice, so these are several conversations in one text; each is to "
            "be a row of its own"
        )
    for message in found:
        if mark := MARK.search(message.content):
            raise RowError(
                f"a turn of the {message.role} holds {mark[0]}, which {form.name} writes around turns or "
                "calls and which can't be read there; data.bad_rows=skip leaves such rows out, "
                "data.format=text trains all rows as plain text"
            )
    return found


def _ended(form: KnownTemplate, body: str) -> tuple[str, bool]:
    """What is said in a turn, and whether an end follows it. Raises RowError where something else follows."""
    end, sign = min(
        ((place, sign) for sign in form.ends if (place := body.find(sign)) >= 0), default=(-1, "")
    )
    if end < 0:
        return body.strip(), False
    rest = body[end + len(sign) :]
    if (closed := CLOSED.match(rest)) is None or closed.end() < len(rest):
        raise RowError(
            f"{quoted(rest.strip())} stands between {sign} and the next turn, where nothing was expected"
        )
    return body[:end] if form.exact else body[:end].strip(), True


def _turns(found: str, form: KnownTemplate, words: RoleWords) -> Iterator[tuple[str, str, str]]:
    """(role, channel, text) of each turn."""
    at = first_turn_at(found)
    heads = _heads(found, form, at, words)
    if again := FIRST.search(found, heads[0].end()):
        raise RowError(
            f"{again[0]}, which begins a text, stands in the middle, so these are several conversations in "
            "one text; each is to be a row"
        )
    if before := found[at : heads[0].start()].strip():
        if not form.leads:
            raise RowError(
                f"the text must begin with a turn, as {form.name} writes it, and {quoted(before)} stands "
                "before the first"
            )
        yield "system", "", before
    # behind an answer, behind other turns: whether a blank line follows
    parted: dict[bool, set[bool]] = {True: set(), False: set()}
    for head, behind in zip(heads, [*(head.start() for head in heads[1:]), len(found)], strict=True):
        role, body, last = role_of(form, head, words), found[head.end() : behind], behind == len(found)
        said, ended = _ended(form, body)
        if not ended and form.ended and not last:
            raise RowError(
                f"a turn of {quoted(head['who'])} is not ended by {form.ends[0]} before the next begins"
            )
        if not ended and last and not said and role == "assistant":
            return  # where the model is to go on
        if form.ended and not last:
            parted[role == "assistant"].add(body[len(body.rstrip()) :].count("\n") > 1)
        yield role, head.groupdict().get("channel") or "", said
    if parted == {True: {True}, False: {False}}:
        raise RowError(
            "a blank line follows each answer and no other turn, so these are several conversations in one "
            "text; each is to be a row"
        )


def _heads(found: str, form: KnownTemplate, at: int, words: RoleWords) -> list[re.Match[str]]:
    """Where turns begin. Of headings, only those words that were there up to the first answer: an answer
    has headings of its own.
    """
    heads = list(form.head.finditer(found, at))
    if not form.words:
        return heads
    first = next((i for i, head in enumerate(heads) if role_of(form, head, words) == "assistant"), len(heads))
    known = {head["who"].lower() for head in heads[: first + 1]}
    return [head for head in heads if head["who"].lower() in known]


def _joined(form: KnownTemplate, turns: Iterator[tuple[str, str, str]]) -> Iterator[Message]:
    """Messages: what belongs to a question is put to it, a system prompt inside of one is taken out of it,
    a thought is put to its answer.
    """
    asked, thought = None, ""
    for role, channel, said in turns:
        if role == "more":
            asked = f"{asked}\n{said}" if asked and said else asked or said
            continue
        if asked is not None:
            yield Message(role="user", content=asked)
            asked = None
        if channel == "analysis" and role == "assistant":
            thought = f"{thought}\n{said}" if thought else said
        elif channel not in ("", "final"):
            raise RowError(
                f"a turn in the channel {quoted(channel)}, which can't be read from a text; only analysis "
                "and final can"
            )
        elif role == "user":
            if form.name.startswith("Llama 2") and (system := SYSTEM.match(said)):
                yield Message(role="system", content=system[1])
                said = said[system.end() :]
            asked = said
        else:
            answers = role == "assistant"
            yield Message(
                role=role,  # type: ignore[arg-type]
                content=said,
                trained=answers,
                reasoning=(thought or None) if answers else None,
            )
            thought = "" if answers else thought
    if asked is not None:
        yield Message(role="user", content=asked)


FORMAT = Format(
    name="templated",
    version=2,
    columns=("text", *TURNS),
    roles=ROLES,
    read=lambda row, options: (templated(row, options.words),),
)
CONTINUED = Format(
    name="continued",
    version=None,
    columns=tuple(column for pair in PAIRS.values() for column in pair),
    roles=ROLES,
    read=lambda row, options: (continued(row, options.words),),
)
"""questions that a template wrote, of rows of another format"""
