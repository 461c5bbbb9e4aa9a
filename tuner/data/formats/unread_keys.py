"""What no format reads of a row: columns with text in them, and keys of turns that say something.

Each format's columns are those that it really reads of this row: of `messages` beside `conversations` only
one is. A test holds the sets below to the readers. Ordinary rows cost two comparisons of keys, and one for
each turn.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuner.data.conversation import Conversation
from tuner.data.formats import messages, preference, pretrain, text, train_flags, turns, xtuner
from tuner.data.formats.checks import RoleWords
from tuner.data.formats.spelled import standard_turn

Way = tuple[str, ...]
"""keys one inside the other; places in lists are left out"""
Left = Iterator[tuple[Way, Any]]

BESIDE = frozenset(("tool_calls", "function_call", *turns.THOUGHTS, *train_flags.FLAGS, *messages.REFUSED))
OPENAI = BESIDE | {"role", "content"}
SHARE = BESIDE | {"from", "value"}
CALLED = SHARE | {"role", "content"}
"""of a turn that is a call"""
OF_TOOLS = frozenset(("tool_call_id", "name"))
"""read of what a tool answered"""
NODE = frozenset(
    "text role rank replies deleted review_result message_id parent_id message_tree_id tree_state".split()
)
PROSE = re.compile(
    r"[^\W\d_]{2}\S{,20}\s{1,8}(?:\S{1,12}\s{1,8})?[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4}"
)
"""two words: ids, dates and most names have none"""
COLUMNS = {
    "xtuner": frozenset(("conversation",)),
    "messages": frozenset(("messages",)),
    "sharegpt": frozenset(("conversations",)),
    "prompt": frozenset(("prompt", "completion")),
    "alpaca": frozenset(("instruction", "input", "output", "history")),
    "text": frozenset(("text",)),
    "templated": frozenset(("text",)),
    "continued": frozenset(("prompt", "completion", "instruction", "output")),
}
LISTS = {
    "xtuner": ("conversation",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt": ("prompt", "completion"),
    "alpaca": ("history",),
}
"""those that may be turns"""


def holds_anything(value: Any) -> bool:
    """Whether a value says something: all but null, blanks and what holds nothing else."""
    return _any(value, lambda one: one is not None and not (isinstance(one, str) and not one.strip()))


def may_matter(key: str, value: Any) -> bool:
    """Whether a column holds text, or what may be a mask or a verdict: true and false, ones and zeros.
    Other numbers are measures and ids.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return key in train_flags.FLAGS or key in preference.VERDICTS
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, int | float) and one in (0, 1) for one in value)
    ):
        return True
    return _any(value, lambda one: isinstance(one, bool) or (isinstance(one, str) and bool(one.strip())))


def is_prose(value: Any) -> bool:
    """Whether there is a text of more than a word in it."""
    return _any(value, lambda one: isinstance(one, str) and PROSE.search(one) is not None)


def _any(value: Any, right: Callable[[Any], bool]) -> bool:
    if not isinstance(value, dict | list):
        return right(value)
    open_ = [value]
    while open_:
        inner = open_.pop()
        for part in inner.values() if isinstance(inner, dict) else inner:
            if isinstance(part, dict | list):
                open_.append(part)
            elif right(part):
                return True
    return False


def find_unread(
    row: Any, format: str, openai: RoleWords, share: RoleWords, verdict: str | None = None
) -> Left:
    """What is not read of a row that was read as `format`, with its columns in their places: the way to
    it, and the value.
    """
    if isinstance(row, list):
        yield from _turns(row, "messages", openai, shares=False)
        return
    if format == "oasst":
        yield from (((name,), value) for name, value in unread_in_tree(row))
        return
    kept, lists = _read(row, format, verdict)
    if not row.keys() <= kept:
        beside = _beside(row, format, openai, share)
        for key, value in row.items():
            if key not in kept and key not in beside and may_matter(key, value):
                yield (key,), value
    for key in lists:
        if key == "conversation":
            yield from _exchanges(row[key])
        else:
            yield from _turns(
                row.get(key), key, *((openai, False) if format in ("messages", "prompt") else (share, True))
            )


def _beside(row: Mapping[str, Any], format: str, openai: RoleWords, share: RoleWords) -> frozenset[str]:
    """The columns beside its own that are read as well: none of them where the row is a document."""
    if format == "text":
        return frozenset()
    found = turns.columns_beside(row, compared=format == "preference")
    if found and format == "xtuner":
        return (
            found if any(isinstance(sample, Conversation) for sample in xtuner.xtuner(row)) else frozenset()
        )
    if found and format in ("messages", "sharegpt"):
        value, words = (row["messages"], openai) if format == "messages" else (row["conversations"], share)
        value = _written(value) if isinstance(value, str) else value
        return found if pretrain.document(value, words) is None else frozenset()
    return found


def _exchanges(value: Any) -> Left:
    value = _written(value) if isinstance(value, str) else value
    for exchange in value if isinstance(value, list) else ():
        for key in exchange.keys() - xtuner.keys_read(exchange) if isinstance(exchange, dict) else ():
            if holds_anything(exchange[key]):
                yield ("conversation", key), exchange[key]


def _read(row: Mapping[str, Any], format: str, verdict: str | None) -> tuple[frozenset[str], tuple[str, ...]]:
    """The columns that are read as `format`, and those of them that may be turns."""
    if kept := COLUMNS.get(format):
        return kept, LISTS.get(format, ())
    if format == "guanaco":
        return frozenset(("input", "output") if text.has_answer_apart(row) else ("text",)), ()
    if format == "label":
        kept, lists = _read(row, preference.labelled_format(row) or "", None)
        return kept | {preference.verdict_column(row, verdict)}, lists
    before = preference.prompt_column(row)
    asked = ("instruction", "input") if before == "instruction" else (before,) if before else ()
    return frozenset(("chosen", "rejected", *asked)), ("chosen", "rejected", *((before,) if before else ()))


def _turns(value: Any, name: str, words: RoleWords, shares: bool) -> Left:
    if isinstance(value, str):
        value = _written(value) if name in ("messages", "conversations") else None
    for entry in value if isinstance(value, list) else (value,):
        turn = standard_turn(entry)
        if not isinstance(turn, dict) or (
            len(turn) == 2 and isinstance(turn.get("content") or turn.get("value"), str)
        ):
            continue  # nearly all
        said, who = ("value", turn["from"]) if shares and "from" in turn else ("content", turn.get("role"))
        known = OPENAI if said == "content" else CALLED if who in messages.CALLERS else SHARE
        if isinstance(who, str) and words.get(who) == "tool":
            known |= OF_TOOLS
        for key in turn.keys() - known:
            if holds_anything(turn[key]):
                yield (name, key), turn[key]
        parts = turn.get(said)
        for part in parts if isinstance(parts, list) else ():
            for key in messages.unread_keys_of_part(part):
                if holds_anything(part[key]):
                    yield (name, said, key), part[key]


def _written(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def unread_in_tree(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is not read of a tree, or of a message of one: its name, and the value."""
    first = row.get("prompt")
    is_tree = isinstance(first, dict)
    for key, value in row.items():
        if key not in (("prompt", "message_tree_id", "tree_state") if is_tree else NODE) and may_matter(
            key, value
        ):
            yield key, value
    open_: list[dict[str, Any]] = [first] if isinstance(first, dict) else []
    while open_:
        node = open_.pop()
        for key, value in node.items():
            if key not in NODE and may_matter(key, value):
                yield f"prompt.{key}", value
        open_ += [reply for reply in node.get("replies") or () if isinstance(reply, dict)]
