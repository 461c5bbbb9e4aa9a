"""What a worker gets and gives: the settings once, then rows, for which documents come back. All of it can
be sent to another process.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.config.schema import Chat
from tuner.data.files.row_files import Chunk
from tuner.data.formats import oasst_flat
from tuner.data.formats.nulls import Nulls
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize.cuts import Cut

NO_ANSWER = "no assistant turn with text is trained"
TOO_LONG = "longer than data.length"
OUT_OF_REACH = "no trained token within data.length"
NOT_DRAWN = "not drawn (take)"
EXAMPLES = 20
"""rows with something unread that are kept to try on them what would read it"""


def _none(kind: Any) -> Any:
    return lambda: np.zeros(0, dtype=kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSettings:
    """How the rows of one source are read."""

    shape: RowShape
    fill: dict[str, str]
    system: str | None
    leave: tuple[str, ...] = ()
    """patterns of what is known not to be read of a row"""
    strict: bool = False
    """whether a row of which something else is not read is an error"""

    def is_left(self, name: str) -> bool:
        """Whether it is known that this is not read."""
        return any(fnmatchcase(name, pattern) for pattern in self.leave)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeSettings:
    """All that decides the documents, but for the rows."""

    model: Path
    """the directory of the tokenizer"""
    chat: Chat
    sources: tuple[SourceSettings, ...]
    length: int
    """the longest document, in tokens"""
    overlong: str
    loss: str
    reasoning: str
    compares: bool = False
    """whether the objective compares answers: rows that do become documents with a role, else they are
    refused
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Rows to be made into documents."""

    source: int
    """index into the settings' sources"""
    rows: Chunk | tuple[oasst_flat.RowGroup, ...]
    file: str = ""
    """where they are from, for messages"""
    drawn: NDArray[np.bool_] | None = None
    """[rows] which of them are wanted; None for all"""
    apart: bool = False
    """whether they are of a file that is held out, of which all rows are wanted whatever split they say
    they are of
    """
    check: bool = False
    """only look for rows that can't be read"""

    @property
    def called(self) -> str:
        """For a message: which rows of which file."""
        first = self.rows.first if isinstance(self.rows, Chunk) else min(self.rows[0].numbers)
        return f"{self.file} from row {first} on"


@dataclass(kw_only=True, slots=True)
class Unread:
    """A column, or a key of turns, that no format reads."""

    rows: int = 0
    """in which it says something"""
    texts: int = 0
    """of them, those where it is more than a word"""
    left: bool = False
    """whether data.leave knows it"""
    examples: list[Any] = field(default_factory=list)
    """the first few rows with a text there, as they are in the file"""

    def add(self, rows: int, texts: int, example: Any = None) -> None:
        """Count rows; `example` is one of them."""
        self.rows += rows
        self.texts += texts
        if example is not None and texts and len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass(kw_only=True, slots=True)
class TokenizedRows:
    """What became of a job's rows. Lines are in the order of the rows; each list of them is whole."""

    read: int = 0
    kept: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(line, why) of the rows that can't be read"""
    unwritten: list[tuple[int, str]] = field(default_factory=list)
    """of those that the template can't write"""
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """by reason, the lines"""
    truncated: int = 0
    """rows of which the end was left out"""
    overlong: list[Cut] = field(default_factory=list)
    """these, and rows that are left out because they are longer than data.length"""
    split: int = 0
    """rows that became several documents, each within length"""
    unread: dict[str, "Unread"] = field(default_factory=dict)
    """by name, what no format reads of the rows that were read"""
    nulls: Nulls = field(default_factory=Nulls)
    """of calls and tools: those that a columnar schema filled in, and doubtful ones"""
    places: NDArray[np.int64] = field(default_factory=_none(np.int64))
    """[D] the place of a document's row (or tree) among the job's, from 0"""
    lines: NDArray[np.int32] = field(default_factory=_none(np.int32))
    """[D] the row's line, or the first of them"""
    parts: NDArray[np.int32] = field(default_factory=_none(np.int32))
    """[D] which of its row's samples it was made from, from 0"""
    weights: NDArray[np.int32] = field(default_factory=_none(np.int32))
    """[D] how many rows it was made from"""
    roles: NDArray[np.int8] = field(default_factory=_none(np.int8))
    """[D] what it is in a comparison of answers (tuner.data.conversation.DocumentRole)"""
    lengths: NDArray[np.int32] = field(default_factory=_none(np.int32))
    """[D] tokens of each document"""
    ids: NDArray[np.int32] = field(default_factory=_none(np.int32))
    """[sum of lengths]"""
    trained: NDArray[np.bool_] = field(default_factory=_none(np.bool_))
    """[sum of lengths]"""
    hashes: NDArray[np.uint64] = field(default_factory=_none(np.uint64))
    """[D] of a document's ids"""

    def drop(self, reason: str, lines: Iterable[int]) -> None:
        """Count rows that are left out."""
        self.dropped.setdefault(reason, []).extend(lines)
