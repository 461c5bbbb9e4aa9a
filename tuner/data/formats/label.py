"""Conversations whose last answer was found good or bad: `{"label": true, …}`, beside a conversation as
messages, ShareGPT, prompt and completion, Alpaca or XTuner.

The last answer is trained. A verdict may also be called `kto_tag` and the like, and be 1 and 0, or a word; as
classes are called so too, it then has to be two verdicts in the whole source.
"""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import Conversation, Label, RowError, last_only
from tuner.data.formats import alpaca, messages, prompt, sharegpt, xtuner
from tuner.data.formats.checks import in_words, key_list, required
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.unread_keys import Unread
from tuner.data.formats.verdicts import CERTAIN, verdict_value

LABELLED = (messages.FORMAT, sharegpt.FORMAT, prompt.FORMAT, alpaca.FORMAT, xtuner.FORMAT)
"""formats to whose conversations a label may belong"""


def label(row: Mapping[str, Any], options: Options) -> Label:
    """Raises RowError."""
    key = verdict_column(row, options.verdict)
    good = verdict_value(required(row, key))
    if good is None:
        raise RowError(f"{key} must be true or false, and this is {in_words(row[key])}")
    whole = _conversation(row, options)
    last = next((message for message in reversed(whole.messages) if message.role == "assistant"), None)
    if last is None or not last.trains:
        raise RowError("a label belongs to the last answer, and here is none that can be trained")
    return Label(conversation=last_only(whole), good=good)


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


def labelled_format(row: Mapping[str, Any]) -> Format | None:
    """The format of the conversation that a label belongs to."""
    for format in LABELLED:
        if all([column in row for column in format.keys]):
            return format
    return None


def _conversation(row: Mapping[str, Any], options: Options) -> Conversation:
    format = labelled_format(row)
    for sample in format.read(row, options) if format else ():
        if isinstance(sample, Conversation):
            return sample
    raise RowError(
        "a label needs a conversation: messages, conversations, prompt and completion, or instruction and "
        f"output (the keys are {key_list(row)})"
    )


def _own(row: Mapping[str, Any], options: Options) -> frozenset[str]:
    format = labelled_format(row)
    columns = format.own_columns(row, options) if format else frozenset[str]()
    return columns | {verdict_column(row, options.verdict)}


def _inside(row: Mapping[str, Any], options: Options) -> Unread:
    format = labelled_format(row)
    return format.unread_inside(row, options) if format else iter(())


FORMAT = Format(
    name="label",
    version=3,
    columns=(
        "label",
        *("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history"),
        *TURNS,
    ),
    roles=sharegpt.ROLES,
    read=lambda row, options: (label(row, options),),
    own=_own,
    inside=_inside,
)
