"""What no format reads of a row: columns with text in them, and keys of turns that say something.

A test holds the sets below to the readers. Ordinary rows cost two comparisons of keys, and one for each turn.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tuner.data.formats.checks import RoleWords
from tuner.data.formats.content_parts import unread_keys_of_part
from tuner.data.formats.train_flags import FLAGS
from tuner.data.formats.turns import CALLERS, REFUSED, THOUGHTS, standard_turn
from tuner.data.formats.verdicts import VERDICTS

Path = tuple[str, ...]
"""keys one inside the other; places in lists are left out"""
Unread = Iterator[tuple[Path, Any]]
"""each with what it holds"""

BESIDE = frozenset(("tool_calls", "function_call", *THOUGHTS, *FLAGS, *REFUSED))
OPENAI = BESIDE | {"role", "content"}
SHARE = BESIDE | {"from", "value"}
CALLED = SHARE | {"role", "content"}
"""of a turn that is a call"""
OF_TOOLS = frozenset(("tool_call_id", "name"))
"""read of what a tool answered"""
PROSE = re.compile(
    r"[^\W\d_]{2}\S{,20}\s{1,8}(?:\S{1,12}\s{1,8})?[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4}"
)
"""two words: ids, dates and most names have none"""


def holds_anything(value: Any) -> bool:
    """Whether a value says something: all but null, blanks and what holds nothing else."""
    return _any(value, lambda one: one is not None and not (isinstance(one, str) and not one.strip()))


def may_matter(key: str, value: Any) -> bool:
    """Whether a column holds text, or what may be a mask or a verdict: true and false, ones and zeros.
    Other numbers are measures and ids.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return key in FLAGS or key in VERDICTS
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


def unread_in_turns(value: Any, name: str, words: RoleWords, *, shares: bool = True) -> Unread:
    """What is not read of turns in the column `name`, or of a single one.

    words   for who speaks
    shares  whether turns of from and value are known
    """
    value = json_or_none(value)
    for entry in value if isinstance(value, list) else (value,):
        turn = standard_turn(entry)
        if not isinstance(turn, dict) or (
            len(turn) == 2 and isinstance(turn.get("content") or turn.get("value"), str)
        ):
            continue  # nearly all
        said, who = ("value", turn["from"]) if shares and "from" in turn else ("content", turn.get("role"))
        known = OPENAI if said == "content" else CALLED if who in CALLERS else SHARE
        if isinstance(who, str) and words.get(who) == "tool":
            known |= OF_TOOLS
        for key in turn.keys() - known:
            if holds_anything(turn[key]):
                yield (name, key), turn[key]
        parts = turn.get(said)
        for part in parts if isinstance(parts, list) else ():
            for key in unread_keys_of_part(part):
                if holds_anything(part[key]):
                    yield (name, said, key), part[key]


def json_or_none(value: Any) -> Any:
    """A value, read where it is JSON in a text; None for any other text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
