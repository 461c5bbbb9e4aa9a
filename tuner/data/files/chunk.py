"""What a file is cut into."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.errors import DataError
from tuner.hardware.limits import row_limit

CHUNK = 1 << 20
"""about as many bytes (or characters) of a file are one chunk"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Some rows of a file, one after the other: lines that are still to be parsed, or values."""

    first: int
    """number of its first row, from 1: the line of a JSONL or text file, the item's number in a JSON list
    or a table
    """
    lines: bytes | None = None
    """whole lines of a JSONL file, in UTF-8 whatever the file was written in"""
    values: Sequence[Any] | None = None
    """rows that had to be parsed to be cut: values, and `Unreadable` where there is none"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """What stands where a row should be."""

    reason: str
    """what was found and what was expected, without the file and the row's number"""


class TooLong(DataError):
    """A row, or a cell of a table, that is longer than machine.row_limit."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is longer than {row_limit() / (1 << 20):g} MiB "
            "(machine.row_limit). If it is meant so, raise that; else a line end or a closing quote is "
            "missing, or the file was made to fill the memory."
        )


def key_pattern(names: Iterable[str]) -> re.Pattern[bytes]:
    """What finds one of these keys in JSON's bytes, without parsing them.

    >>> [bool(key_pattern(["label"]).search(row)) for row in (b'{"label": 1}', b'{"labels": 1}')]
    [True, False]
    """
    return re.compile(b'"(?:' + b"|".join(re.escape(name.encode()) for name in names) + b')"')
