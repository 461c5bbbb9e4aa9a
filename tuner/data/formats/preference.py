"""Preferences: two ways to go on, the better one first; and conversations whose last answer was found good or
bad.

`{"prompt": …, "chosen": …, "rejected": …}`, where each is a text or turns, or a single turn. What comes
before may also be `messages`, `conversations` (ShareGPT), or `instruction` and `input`; without any, it is
what the turns of both sides have in common at their beginning. Sides that repeat the prompt are taken behind
it. The prompt is never trained, what the assistant says on either side is.

`better` turns either into what fine-tuning on the better answers takes.

`{"label": true, …}`, beside a conversation as messages, ShareGPT, prompt and completion, or Alpaca; its last
answer is trained. A verdict may also be called `kto_tag` and the like, and be 1 and 0, or a word; as classes
are called so too, it then has to be two verdicts in the whole source.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from tuner.data.conversation import Conversation, Label, Message, Preference, RowError, Sample, last_only
from tuner.data.formats.alpaca import alpaca, question
from tuner.data.formats.checks import RoleWords, in_words, key_list, required, text_of
from tuner.data.formats.messages import messages
from tuner.data.formats.prompt import prompt, untrained
from tuner.data.formats.sharegpt import ROLES, sharegpt, turns
from tuner.data.formats.turns import make_conversation
from tuner.data.formats.xtuner import xtuner

LABELLED = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "xtuner": ("conversation",),
}
"""formats to whose conversations a label may belong → the columns they can't do without"""
BEFORE = ("prompt", "messages", "conversations", "instruction")
CERTAIN = ("label", "kto_tag")
"""true and false there are a verdict, whatever the other rows hold"""
VERDICTS = (
    *CERTAIN,
    *(
        "verdict desirable is_desirable is_good good thumbs_up thumbs thumb vote rating feedback preferred "
        "is_preferred chosen is_chosen accepted is_accepted liked upvoted acceptable is_acceptable "
        "is_correct correct"
    ).split(),
)
GOOD = (
    "true",
    "1",
    "1.0",
    "+1",
    "yes",
    "good",
    "desirable",
    "chosen",
    "accepted",
    "accept",
    "like",
    "liked",
    "up",
    "upvote",
    "thumbs_up",
    "thumbs up",
    "👍",
    "correct",
)
BAD = (
    "false",
    "0",
    "0.0",
    "-1",
    "no",
    "bad",
    "undesirable",
    "rejected",
    "reject",
    "dislike",
    "disliked",
    "down",
    "downvote",
    "thumbs_down",
    "thumbs down",
    "👎",
    "incorrect",
)
NAMES = frozenset(VERDICTS)
WORDS = dict.fromkeys(GOOD, True) | dict.fromkeys(BAD, False)


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
        raise RowError(f"{name} must be a text, a turn or a list of turns, and this is {in_words(value)}")
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


def label(row: Mapping[str, Any], words: RoleWords = ROLES, verdict: str | None = None) -> Label:
    """`verdict` is the column of it, where that is not `label`. Raises RowError."""
    key = verdict_column(row, verdict)
    good = verdict_value(required(row, key))
    if good is None:
        raise RowError(f"{key} must be true or false, and this is {in_words(row[key])}")
    whole = _labelled(row, words)
    last = next((message for message in reversed(whole.messages) if message.role == "assistant"), None)
    if last is None or not last.trains:
        raise RowError("a label is of the last answer, and there is none that can be trained")
    return Label(conversation=last_only(whole), good=good)


def better_answer(sample: Sample) -> Sample | None:
    """What a sample without comparison is, or of one with, the conversation that ends in the better
    answer; none where it was found bad.
    """
    if isinstance(sample, Label):
        return sample.conversation if sample.good else None
    if not isinstance(sample, Preference):
        return sample
    return replace(sample.prompt, messages=(*sample.prompt.messages, *sample.chosen))


def verdict_value(value: Any) -> bool | None:
    """What a verdict says; None where it is none."""
    return WORDS.get(verdict_word(value))


def verdict_word(value: Any) -> str:
    """A value that may be a verdict as one spelling; empty where nothing is said.

    >>> [spelled(value) for value in (True, "True ", 1, 1.0, -1, None, "", "B", [1])]
    ['true', 'true', '1', '1', '-1', '', '', 'b', '…']
    """
    if isinstance(value, bool | str):
        word = str(value).strip().lower()
        return word.removesuffix(".0").removeprefix("+") if word[-2:] == ".0" or word[:1] == "+" else word
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, int | float) and value in (0, 1, -1) else "…"


def verdict_column(row: Mapping[str, Any], verdict: str | None = None) -> str:
    """The column of the verdict in a row that has one: that of the source, or one that says so itself."""
    return verdict if verdict in row else next((key for key in CERTAIN if key in row), CERTAIN[0])  # type: ignore[return-value]


def is_judged(row: Mapping[str, Any], verdict: str | None = None) -> bool:
    """Whether a row says of its answer that it is good or bad; `verdict` is the column that does so in its
    source.
    """
    if not (
        isinstance(row.get("label"), bool)
        or isinstance(row.get("kto_tag"), bool)
        or (verdict is not None and verdict_value(row.get(verdict)) is not None)
    ):
        return False
    return is_labelled(row)


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether there is a conversation to which a label can belong."""
    return labelled_format(row) is not None


def labelled_format(row: Mapping[str, Any]) -> str | None:
    """The format of the conversation that a label belongs to."""
    for format, columns in LABELLED.items():
        if all([column in row for column in columns]):
            return format
    return None


def _labelled(row: Mapping[str, Any], words: RoleWords) -> Conversation:
    match labelled_format(row):
        case "messages":
            return messages(row, words)
        case "sharegpt":
            return sharegpt(row, words)
        case "prompt":
            return prompt(row, words)
        case "alpaca":
            return alpaca(row)
        case "xtuner" if isinstance(found := xtuner(row)[0], Conversation):
            return found
    raise RowError(
        "a label needs a conversation: messages, conversations, prompt and completion, or instruction and "
        f"output (the keys are {key_list(row)})"
    )
