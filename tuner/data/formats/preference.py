"""Preferences: two ways to go on, the better one first.

`{"prompt": …, "chosen": …, "rejected": …}`, where each is a text or turns, or a single turn. What comes
before may also be `messages`, `conversations` (ShareGPT), or `instruction` and `input`; without any, it is
what the turns of both sides have in common at their beginning. Sides that repeat the prompt are taken behind
it. The prompt is never trained, what the assistant says on either side is.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from tuner.data.conversation import Conversation, Label, Message, Preference, RowError, Sample
from tuner.data.formats.alpaca import question
from tuner.data.formats.checks import RoleWords, in_words, key_list, required, text_of
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.prompt import untrained
from tuner.data.formats.sharegpt import ROLES, turns
from tuner.data.formats.turns import columns_beside, make_conversation

CHOSEN = 1
"""version of data.format=chosen, which takes `better_answer` of each row"""
BEFORE = ("prompt", "messages", "conversations", "instruction")


def preference(row: Mapping[str, Any], words: RoleWords = ROLES) -> Preference:
    """Raises RowError."""
    sides = {name: _side(required(row, name), name, words) for name in ("chosen", "rejected")}
    common = [
        one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*sides.values(), strict=False))
    ]
    asked = _before(row, words)
    if not asked or (len(common) > len(asked) and common[-len(asked) :] == asked):
        asked = common
    if not asked:
        raise RowError(
            f"what came before chosen and rejected is expected in {', '.join(BEFORE)}, or in both of them; "
            f"the keys are {key_list(row)}"
        )
    chosen, rejected = (_behind(asked, side, name) for name, side in sides.items())
    whole = make_conversation(row, [*asked, *chosen], says_calls=True, compared=True)
    make_conversation({}, [*asked, *rejected], says_calls=True)
    prompt = whole.messages[: len(whole.messages) - len(chosen)]
    return Preference(
        prompt=Conversation(messages=tuple(untrained(prompt)), tools=whole.tools),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
    )


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column of what was said before; None where it stands in both sides."""
    return next((key for key in BEFORE if row.get(key) not in (None, "", [])), None)


def _before(row: Mapping[str, Any], words: RoleWords) -> list[Message]:
    key = prompt_column(row)
    if key is None:
        return []
    if key == "instruction":
        return [question(row)]
    value = row[key]
    return (
        [Message(role="user", content=text_of(value, key))]
        if key == "prompt" and isinstance(value, str)
        else turns(value, key, words)
    )


def _side(value: Any, name: str, words: RoleWords) -> list[Message]:
    if isinstance(value, str):
        return [Message(role="assistant", content=text_of(value, name), trained=True)]
    if not isinstance(value, list | dict):
        raise RowError(f"{name} must be a string, a turn or a list of turns, and this is {in_words(value)}")
    return turns([value], name, words) if isinstance(value, dict) else turns(value, name, words)


def _behind(before: list[Message], side: list[Message], name: str) -> list[Message]:
    rest = side[len(before) :] if side[: len(before)] == before else side
    if (
        not rest
        or rest[0].role not in ("assistant", "tool")
        or not any(message.role == "assistant" for message in rest)
    ):
        found = f"a turn of the {rest[0].role} comes first" if rest else "nothing is left"
        raise RowError(
            f"{name} must go on with an answer of the assistant from what both sides have in common, and "
            f"{found}"
        )
    return rest


def better_answer(sample: Sample) -> Sample | None:
    """What a sample without comparison is, or of one with, the conversation that ends in the better
    answer; none where it was found bad.
    """
    if isinstance(sample, Label):
        return sample.conversation if sample.good else None
    if not isinstance(sample, Preference):
        return sample
    return replace(sample.prompt, messages=(*sample.prompt.messages, *sample.chosen))


def _own(row: Mapping[str, Any], _: Options) -> frozenset[str]:
    asked = prompt_column(row)
    more = ("instruction", "input") if asked == "instruction" else (asked,) if asked else ()
    return frozenset(("chosen", "rejected", *more))


FORMAT = Format(
    name="preference",
    version=3,
    columns=(
        *("chosen", "rejected", "prompt", "messages", "conversations", "instruction", "input"),
        *TURNS,
    ),
    keys=("chosen", "rejected"),
    roles=ROLES,
    read=lambda row, options: (preference(row, options.words),),
    own=_own,
    beside=lambda row, _: columns_beside(row, compared=True),
)
