"""Preferences: two ways to go on, the better one first; and conversations whose last answer was found good or bad.

`{"prompt": …, "chosen": …, "rejected": …}`, where each is a text or turns, or a single turn. What comes before may also be `messages`,
`conversations` (ShareGPT), or `instruction` and `input`; without any, it is what the turns of both sides have in common at their beginning.
Sides that repeat the prompt are taken behind it. The prompt is never trained, what the assistant says on either side is.

`better` turns either into what fine-tuning on the better answers takes.

`{"label": true, …}`, beside a conversation as messages, ShareGPT, prompt and completion, or Alpaca; its last answer is trained.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from tuner.data.conversation import Conversation, Label, Message, Preference, RowError, Sample, last_only
from tuner.data.formats.alpaca import alpaca, question
from tuner.data.formats.fields import Words, named, needed, text, told
from tuner.data.formats.messages import messages
from tuner.data.formats.prompt import prompt, shown
from tuner.data.formats.sharegpt import ROLES, sharegpt, turn, turns
from tuner.data.formats.turns import conversation

BEFORE = ("prompt", "messages", "conversations", "instruction")


def preference(row: Mapping[str, Any], words: Words = ROLES) -> Preference:
    """Raises RowError."""
    sides = {name: _side(needed(row, name), name, words) for name in ("chosen", "rejected")}
    common = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*sides.values(), strict=False))]
    before = _before(row, words)
    if not before or (len(common) > len(before) and common[-len(before) :] == before):
        before = common
    if not before:
        raise RowError(f"what came before chosen and rejected is expected in {', '.join(BEFORE)}, or in both of them; the keys are {named(row)}")
    chosen, rejected = (_behind(before, side, name) for name, side in sides.items())
    whole = conversation(row, [*before, *chosen], says_calls=True)
    conversation({}, [*before, *rejected], says_calls=True)
    asked = whole.messages[: len(whole.messages) - len(chosen)]
    return Preference(prompt=Conversation(messages=tuple(shown(asked)), tools=whole.tools), chosen=tuple(chosen), rejected=tuple(rejected))


def _before(row: Mapping[str, Any], words: Words) -> list[Message]:
    key = next((key for key in BEFORE if row.get(key) not in (None, "", [])), None)
    if key is None:
        return []
    if key == "instruction":
        return [question(row)]
    value = row[key]
    return [Message(role="user", content=text(value, key))] if key == "prompt" and isinstance(value, str) else turns(value, key, words)


def _side(value: Any, name: str, words: Words) -> list[Message]:
    if isinstance(value, str):
        return [Message(role="assistant", content=text(value, name), trained=True)]
    if not isinstance(value, list | dict):
        raise RowError(f"{name} must be a text, a turn or a list of turns, and this is {told(value)}")
    return [turn(value, words)] if isinstance(value, dict) else turns(value, name, words)


def _behind(before: list[Message], side: list[Message], name: str) -> list[Message]:
    rest = side[len(before) :] if side[: len(before)] == before else side
    if not rest or rest[0].role not in ("assistant", "tool") or not any(message.role == "assistant" for message in rest):
        found = f"a turn of the {rest[0].role} comes first" if rest else "nothing is left"
        raise RowError(f"{name} must go on with an answer of the assistant from what both sides have in common, and {found}")
    return rest


def label(row: Mapping[str, Any], words: Words = ROLES) -> Label:
    """Raises RowError."""
    good = needed(row, "label")
    if not isinstance(good, bool):
        raise RowError(f"label must be true or false, and this is {told(good)}")
    whole = _labelled(row, words)
    last = next((message for message in reversed(whole.messages) if message.role == "assistant"), None)
    if last is None or not last.trains:
        raise RowError("a label is of the last answer, and there is none that can be trained")
    return Label(conversation=last_only(whole), good=good)


def better(sample: Sample) -> Sample | None:
    """What a sample without comparison is, or of one with, the conversation that ends in the better answer; none where it was found bad."""
    if isinstance(sample, Label):
        return sample.conversation if sample.good else None
    if not isinstance(sample, Preference):
        return sample
    return replace(sample.prompt, messages=(*sample.prompt.messages, *sample.chosen))


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether there is a conversation to which a label can belong."""
    return "messages" in row or "conversations" in row or ("prompt" in row and "completion" in row) or ("instruction" in row and "output" in row)


def _labelled(row: Mapping[str, Any], words: Words) -> Conversation:
    if "messages" in row:
        return messages(row, words)
    if "conversations" in row:
        return sharegpt(row, words)
    if "prompt" in row and "completion" in row:
        return prompt(row, words)
    if "instruction" in row and "output" in row:
        return alpaca(row)
    raise RowError(
        f"a label needs a conversation: messages, conversations, prompt and completion, or instruction and output (the keys are {named(row)})"
    )
