"""What a row holds, checked: texts, roles, JSON written in a text; and how errors name what they found."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from tuner.data.conversation import RowError, Speaker

RoleWords = Mapping[str, Speaker]
"""role → who speaks"""

SHORT = 40
"""characters of a value that an error shows"""
KEYS = 8
"""keys of a row that an error names"""
SLIP = 0.8
"""how alike two words are (difflib) of which one is a slip of the other"""
SHORTEST = 4
"""letters of a word that may be a slip of another: of fewer, one more or less makes many words"""
DEEPEST = 100
"""objects and lists inside one another: more would be no call, and at some depth nothing could write them"""


def quoted(value: str) -> str:
    """A text in quotes, short and on one line, whatever is in it."""
    shown = repr(value[:SHORT])
    return shown if len(value) <= SHORT and len(shown) <= SHORT else f"{shown[: SHORT - 2]}…{shown[0]}"


def key_list(keys: Iterable[Any]) -> str:
    """Keys of a row in a list.

    >>> key_list({"question": "…", "answer": "…"})
    'question, answer'
    """
    every = list(keys)
    shown = [
        key if isinstance(key, str) and key.isprintable() and 0 < len(key) <= SHORT else quoted(str(key))
        for key in every[:KEYS]
    ]
    return ", ".join(shown) + (f" and {len(every) - KEYS} more" if len(every) > KEYS else "") or "none"


def in_words(value: Any) -> str:
    """What a value is, in a few words; never all of it, however large or deep it may be.

    >>> in_words(None), in_words(3), in_words("hello"), in_words([1, 2]), in_words({"role": "user"})
    ('null', 'the number 3', "the string 'hello'", 'a list of 2', 'an object with the keys role')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, int | float):
        return (
            f"the number {value}" if isinstance(value, float) or value.bit_length() < 64 else "a large number"
        )
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with the keys {key_list(value)}" if value else "an empty object"
    return f"a value of the type {type(value).__name__}"


def text_of(value: Any, name: str) -> str:
    """The text that must stand in `name`, as it is. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{name} must be a string, and this is {in_words(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(
                f"{name} holds an unpaired surrogate, which is no character (in {quoted(value)})"
            ) from None
    return value


def required(row: Mapping[str, Any], key: str) -> Any:
    """The value of a key that a format can't do without."""
    if key not in row:
        raise RowError(f"{key} is expected, and the row has none (its keys are {key_list(row)})")
    return row[key]


def speaker_of(word: Any, words: RoleWords) -> Speaker:
    """Who speaks where the role is `word`. Raises RowError for one that isn't known."""
    role = words.get(word) if isinstance(word, str) else None
    if role is None:
        near = nearest_role(word, words) if isinstance(word, str) else None
        raise RowError(
            f"a turn of {quoted(word) if isinstance(word, str) else in_words(word)}"
            f"{f', which may mean {near}' if near else ''}; known are {', '.join(words)}"
        )
    return role


def nearest_role(word: str, known: Iterable[str]) -> str | None:
    """The one of the known words for roles that `word` is a slip of; None where it is none.

    >>> nearest_role("asistant", ["user", "assistant"]), nearest_role("doctor", ["user", "assistant"])
    ('assistant', None)
    """
    close = get_close_matches(word.lower(), known, n=1, cutoff=SLIP) if len(word) >= SHORTEST else []
    return close[0] if close else None


def parse_json(value: str, name: str) -> Any:
    """The JSON value written in a text. Raises RowError."""
    try:
        result = json.loads(value)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else _where(error)
        raise RowError(f"{name} must be JSON in a string, and {quoted(value)} is none ({why})") from None
    if "\\u" in value:
        return checked_json(result, name)
    text_of(value, name)
    return _shallow(result, value, name)


def _where(error: ValueError) -> str:
    return (
        f"{error.msg}, at character {error.pos + 1}"
        if isinstance(error, json.JSONDecodeError)
        else "a number in it is too long"
    )


def checked_json(value: Any, name: str) -> Any:
    """A JSON value, found to be one in all its parts. Raises RowError."""
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RowError(f"{name} must be a JSON value, and this is {in_words(value)} ({why})") from None
    if not written.isascii():
        try:
            written.encode()
        except UnicodeEncodeError:
            raise RowError(f"{name} holds an unpaired surrogate, which is no character") from None
    return _shallow(value, written, name)


def _shallow(value: Any, written: str, name: str) -> Any:
    if written.count("[") + written.count("{") <= DEEPEST:  # nearly all
        return value
    open_ = [(value, 1)]
    while open_:
        inner, depth = open_.pop()
        if depth > DEEPEST:
            raise RowError(
                f"{name} is nested too deeply: more than {DEEPEST} objects and lists stand inside one another"
            )
        parts = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        open_ += [(part, depth + 1) for part in parts if isinstance(part, dict | list)]
    return value
