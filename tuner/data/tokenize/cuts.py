"""What data.length cuts off, and the length that would do."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.data.conversation import Conversation
from tuner.data.shares import as_fraction

ALLOWED = 0.01
"""the share of rows that may be cut without a word; of calls of tools none may"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A row that is longer than data.length, and of which that leaves something out."""

    whole: int
    """its tokens"""
    calls: bool
    """whether a call of a tool is among what is left out"""
    rows: int = 1
    """how many rows it is: a tree has several"""


def cuts_calls(conversation: Conversation | None, ends: Sequence[int], at: int) -> bool:
    """Whether a call lies behind the first `at` tokens of a conversation; `ends` is how many there are up
    to the end of each assistant turn.
    """
    turns = (
        [message for message in conversation.messages if message.role == "assistant"] if conversation else []
    )
    if len(turns) != len(ends):  # a template that writes calls in turns of their own
        return any(turn.calls for turn in turns)
    return any(turn.calls and end > at for turn, end in zip(turns, ends, strict=True))


class Cuts:
    """All that is cut, as it is read."""

    def __init__(self) -> None:
        self._wholes, self._calls, self._rows = array("q"), array("b"), array("q")

    def add(self, found: Iterable[Cut]) -> None:
        for cut in found:
            self._wholes.append(cut.whole)
            self._calls.append(cut.calls)
            self._rows.append(cut.rows)

    @property
    def rows(self) -> int:
        return sum(self._rows)

    @property
    def calls(self) -> int:
        """Rows in which a call of a tool is cut."""
        return sum(rows for rows, calls in zip(self._rows, self._calls, strict=True) if calls)

    def advice(self, length: int, of: int, context: int | None) -> str:
        """What is cut of so many rows and the length that would hold them, in a sentence; empty where it is
        little.

        context   the longest that the model was made for, where that is known: no longer length is proposed
        """
        if not self.rows or (self.rows <= as_fraction(ALLOWED) * of and not self.calls):
            return ""
        what = f"data.length={length} cuts {self.rows:,} of {of:,} rows ({_percent(self.rows, of)})"
        what += f", and calls of tools in {self.calls:,} of them" if self.calls else ""
        wholes, calls, rows = (
            np.frombuffer(column, dtype=column.typecode) for column in (self._wholes, self._calls, self._rows)
        )
        tried: tuple[int, int, int] | None = None
        for longer in proposed_lengths(length, int(wholes.max()), context):
            over = wholes > longer
            tried = longer, int(rows[over].sum()), int(rows[over & (calls > 0)].sum())
            if tried[1] <= as_fraction(ALLOWED) * of and not tried[2]:
                break
        if tried is None:
            return (
                f"{what}, and the model was made for no more ({context:,} tokens); data.overlong=split "
                "trains on the rest too, as documents of their own"
            )
        longer, left, lost = tried
        most = (
            " is the most that the model was made for, and"
            if lost or left > as_fraction(ALLOWED) * of
            else ""
        )
        holds = f"all but {_percent(left, of)}" if left else "all"
        return f"{what}; data.length={longer}{most} would hold {holds}" + (
            f", and cut calls in {lost:,} row{'s' * (lost > 1)}" if lost else ""
        )


def proposed_lengths(length: int, longest: int, context: int | None) -> list[int]:
    """The lengths that could be proposed, rising: powers of two up to one that holds all, within what the
    model was made for.

    >>> [proposed_lengths(2048, 9000, context) for context in (None, 6000, 2048)]
    [[4096, 8192, 16384], [4096, 6000], []]
    """
    found = [1 << length.bit_length()]
    while found[-1] < longest:
        found.append(2 * found[-1])
    return [n for n in found if context is None or n < context] + (
        [context] if context and length < context <= found[-1] else []
    )


def _percent(part: int, of: int) -> str:
    return f"{100 * part / of:.2g} %"
