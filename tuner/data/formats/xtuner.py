"""Exchanges: a question and its answer in one object, and a list of those.

XTuner    {"conversation": [{"system": "…", "input": "…", "output": "…", "output_with_loss": true}, …]}
Firefly   {"conversation": [{"human": "…", "assistant": "…"}, …]}

Other words for the two are in PAIRS. An answer with `"output_with_loss": false` is shown and not trained. A
row without any question or system text is XTuner's form of pre-training: each of its outputs is a document.
"""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError, Text
from tuner.data.formats import train_flags
from tuner.data.formats.alpaca import question
from tuner.data.formats.checks import in_words, parse_json, required, text_of
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.turns import columns_beside, make_conversation
from tuner.data.formats.unread_keys import Unread, holds_anything, json_or_none

PAIRS = (
    ("input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("human", "bot"),
    ("human", "ai"),
    ("user", "assistant"),
    ("user", "bot"),
    ("user", "gpt"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("q", "a"),
)
"""how the question and the answer of an exchange are called, in small letters"""
LOSS = "output_with_loss"
SET = {"need_eos_token": (None, True), "sep": (None, "")}
"""what XTuner's own templates set, and the values that change nothing"""


def xtuner(row: Mapping[str, Any]) -> tuple[Conversation, ...] | tuple[Text, ...]:
    """A conversation, or the documents of a row without questions. Raises RowError."""
    found = required(row, "conversation")
    value = parse_json(found, "conversation") if isinstance(found, str) else found
    if not isinstance(value, list) or not value:
        raise RowError(
            f"conversation must be a list of exchanges with at least one in it, and this is {in_words(value)}"
        )
    messages = [message for entry in value for message in exchange(entry)]
    if not messages:
        raise RowError("conversation has no text in any exchange")
    asked = {pair[0].lower() for entry in value if (pair := exchange_keys(entry))}
    if (
        asked == {"input"}
        and all(message.role == "assistant" for message in messages)
        and not row.get("system")
    ):
        if shown := [message for message in messages if not message.trained]:
            raise RowError(
                f"a document that is not trained ({LOSS} is false), beside no question: {len(shown)} of "
                f"{len(messages)} exchanges"
            )
        return tuple(Text(text=message.content) for message in messages if message.trains)
    return (make_conversation(row, messages),)


def exchange(value: Any) -> list[Message]:
    """The turns of one exchange: system, question and answer, of which those without text are left out,
    but for an answer to a question.
    """
    pair = exchange_keys(value)
    if pair is None:
        example = '{"input": "…", "output": "…"}'
        raise RowError(f"an exchange must be an object such as {example}, and this is {in_words(value)}")
    asked, said = pair
    for key, plain in SET.items():
        if value.get(key) not in plain:
            raise RowError(
                f"an exchange has {key}={in_words(value[key])}, which a chat template decides here; expected "
                "is none"
            )
    both = asked.lower() == "instruction" and value.get("input") not in (None, "")
    put = question(value).content if both else _text(value, asked)
    messages = [Message(role="system", content=system)] if (system := _text(value, "system")) else []
    messages += [Message(role="user", content=put)] if put else []
    answer = _text(value, said)
    wanted = train_flags.is_trained(value, answer)
    return messages + ([Message(role="assistant", content=answer, trained=wanted)] if answer or put else [])


def exchange_keys(value: Any) -> tuple[str, str] | None:
    """How question and answer are called in an exchange; None where it is none, or may be read in two
    ways.
    """
    if not isinstance(value, dict) or "role" in value or "from" in value:
        return None
    spelled = {key.lower(): key for key in value if isinstance(key, str)}
    found = [(spelled[asked], spelled[said]) for asked, said in PAIRS if asked in spelled and said in spelled]
    if len(found) > 1 and {"instruction", "input", "output"} <= spelled.keys():
        # as in Alpaca, the input follows the instruction
        found = [pair for pair in found if pair[0] != spelled["input"]]
    return found[0] if len(found) == 1 else None


def keys_read(value: Mapping[str, Any]) -> frozenset[str]:
    """The keys of an exchange that say something here."""
    return frozenset(
        (
            *(exchange_keys(value) or ()),
            "system",
            *train_flags.FLAGS,
            *SET,
            *(("input",) if "instruction" in value else ()),
        )
    )


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return "" if found is None else text_of(found, f"{key} of an exchange")


def _beside(row: Mapping[str, Any], _: Options) -> frozenset[str]:
    found = columns_beside(row)
    are_turns = found and any(isinstance(sample, Conversation) for sample in xtuner(row))
    return found if are_turns else frozenset()


def _inside(row: Mapping[str, Any], _: Options) -> Unread:
    value = json_or_none(row["conversation"])
    for entry in value if isinstance(value, list) else ():
        for key in entry.keys() - keys_read(entry) if isinstance(entry, dict) else ():
            if holds_anything(entry[key]):
                yield ("conversation", key), entry[key]


FORMAT = Format(
    name="xtuner",
    version=1,
    columns=("conversation", *TURNS),
    keys=("conversation",),
    fits=lambda _: False,  # but by its entries: other sets have turns of another kind in such a column
    is_turn=lambda turn: exchange_keys(turn) is not None,
    read=lambda row, _: xtuner(row),
    beside=_beside,
    inside=_inside,
)
