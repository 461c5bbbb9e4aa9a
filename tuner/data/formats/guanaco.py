"""Guanaco: a conversation in one text.

`{"text": "### Human: …### Assistant: …"}` is a conversation: turns begin at the marks `### Human:` and `###
Assistant:`, with or without a line break before them, and at `### System:` where a line begins. Other
headings (`### Step 1`) are text. `### human:` and `###Human:` are the same marks, in a text that begins so,
or in which nobody answers otherwise. White space around a turn is the form's. A mark that begins a line
inside a code fence is text as well, with those behind it in that fence: the answer shows what such a text
looks like. A fence that nobody closes, or that is followed by one that opens (```python), was left open and
quotes nothing. `{"input": "### Human: … ### Assistant:", "output": "…"}` is the same, with the last answer,
whatever is in it, apart.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError, Speaker
from tuner.data.formats.checks import quoted, required, text_of
from tuner.data.formats.format import TURNS, Format, Options
from tuner.data.formats.turns import make_conversation

MARKS = ("### Human:", "### Assistant:", "### System:")
SPEAKERS: Mapping[str, Speaker] = {"human": "user", "assistant": "assistant", "system": "system"}
BEGIN = re.compile(r"\s*### ?(?:Human|Assistant|(?P<system>System)):", re.IGNORECASE)
HUMAN = re.compile(r"### ?Human:", re.IGNORECASE)
_EXACT, _LOOSE = r"### (?P<who>Human|Assistant|System):", r"(?i:### ?(?P<who>Human|Assistant|System):)"
EXACT = re.compile(rf"\s*{_EXACT}")
FENCED = tuple(re.compile(rf"{mark}|```+(?P<info>\w*)") for mark in (_EXACT, _LOOSE))
PLAIN = tuple(map(re.compile, (_EXACT, _LOOSE)))
"""the same without fences, which is much faster"""


def is_guanaco(value: Any) -> bool:
    """Whether a text begins as the guanaco form does. A system prompt is followed by a question: other
    templates have `### User:` there.
    """
    begin = BEGIN.match(value) if isinstance(value, str) else None
    return begin is not None and (not begin["system"] or HUMAN.search(value, begin.end()) is not None)


def has_answer_apart(row: Mapping[str, Any]) -> bool:
    """Whether its last answer stands apart."""
    return is_guanaco(row.get("input")) and "output" in row


def is_guanaco_conversation(value: str) -> bool:
    """Whether a text is a conversation in the guanaco form, with an answer."""
    try:
        return is_guanaco(value) and any(message.trains for message in guanaco({"text": value}).messages)
    except RowError:
        return False


def guanaco(row: Mapping[str, Any]) -> Conversation:
    """Raises RowError."""
    apart = has_answer_apart(row)
    found = text_of(row["input"] if apart else required(row, "text"), "input" if apart else "text")
    messages, who, rest = _read(found, 0 if EXACT.match(found) else 1)
    if not any(message.role == "assistant" for message in messages) and who != "assistant":
        messages, who, rest = _read(found, 1)
    if who is None:
        raise RowError(
            f"the text must begin with one of the marks {', '.join(MARKS)}, and none is in {quoted(found)}"
        )
    if apart:
        if who != "assistant" or rest.strip():
            raise RowError("input must end with the mark ### Assistant:, as output is what follows it")
        rest = text_of(row["output"], "output")
    _turn(messages, who, rest)
    return make_conversation(row, messages)


def _read(found: str, loose: int) -> tuple[list[Message], str | None, str]:
    """The turns up to the last mark, whose it is, and what follows it."""
    messages: list[Message] = []
    end, who = 0, None
    for mark in marks(found, loose):
        _turn(messages, who, found[end : mark.start()])
        end, who = mark.end(), mark["who"].lower()
    return messages, who, found[end:]


def _turn(messages: list[Message], who: str | None, said: str) -> None:
    if who:
        messages.append(Message(role=SPEAKERS[who], content=said.strip(), trained=who == "assistant"))
    elif said.strip():
        raise RowError(
            f"the text must begin with one of the marks {', '.join(MARKS)}, and {quoted(said.strip())} "
            "stands before the first"
        )


def marks(value: str, loose: int = 0) -> Iterator[re.Match[str]]:
    """The marks at which turns begin; if `loose`, in any case and with or without the blank."""
    if "```" not in value:
        yield from (
            mark
            for mark in PLAIN[loose].finditer(value)
            if mark["who"].lower() != "system" or _begins_line(value, mark)
        )
        return
    held: list[re.Match[str]] = []
    inside = False
    for token in FENCED[loose].finditer(value):
        if token["who"]:
            first = _begins_line(value, token)
            if token["who"].lower() == "system" and not first:
                continue
            if inside and (held or first):
                held.append(token)
            else:
                # in the middle of a line a turn begins, whatever fence was left open before it
                inside = False
                yield token
        elif not inside:
            inside = True
        elif held and token["info"]:
            yield from held
            held = []
        else:
            held, inside = [], False
    yield from held


def _begins_line(value: str, mark: re.Match[str]) -> bool:
    return mark.start() == 0 or value[mark.start() - 1] == "\n"


def _fits(row: Mapping[str, Any]) -> bool:
    return is_guanaco(row.get("text")) or has_answer_apart(row)


def _own(row: Mapping[str, Any], _: Options) -> frozenset[str]:
    return frozenset(("input", "output") if has_answer_apart(row) else ("text",))


FORMAT = Format(
    name="guanaco",
    version=2,
    columns=("text", "input", "output", *TURNS),
    fits=_fits,
    read=lambda row, _: (guanaco(row),),
    own=_own,
)
