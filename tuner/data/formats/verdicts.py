"""Columns that may say of an answer whether it is good, and the words that say so."""

from typing import Any

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


def verdict_value(value: Any) -> bool | None:
    """What a verdict says; None where it is none."""
    return WORDS.get(verdict_word(value))


def verdict_word(value: Any) -> str:
    """A value that may be a verdict as one spelling; empty where nothing is said.

    >>> [verdict_word(value) for value in (True, "True ", 1, 1.0, -1, None, "", "B", [1])]
    ['true', 'true', '1', '1', '-1', '', '', 'b', '…']
    """
    if isinstance(value, bool | str):
        word = str(value).strip().lower()
        return word.removesuffix(".0").removeprefix("+") if word[-2:] == ".0" or word[:1] == "+" else word
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, int | float) and value in (0, 1, -1) else "…"
