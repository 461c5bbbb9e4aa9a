"""Which documents are kept out of training, drawn by distinct content: nothing that is trained on is
measured, however often it stands in the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuner.data.tokenize.ledger import FileCounts
from tuner.data.tokenize.packing import draw_held_out
from tuner.data.tokenize.spool import Spool
from tuner.report.page import tokens_measured

FEW = 200
"""rows, below which those that are held out are missed in training"""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The two sides of a draw."""

    documents: NDArray[np.bool_]
    """[D] which are held out"""
    tokens: int
    """of these, that a loss stands on"""
    rows: int
    """held out; a tree of messages is a row here"""
    of_rows: int
    contents: int
    """held out that differ: rows that share a document's tokens hold one content"""
    of_contents: int
    drawn: bool
    """by share; else they are of files of their own"""
    trained: bool
    """whether what is held out is trained on all the same, since files of their own hold all that there is"""

    def entry(self) -> dict[str, Any]:
        """What the ledger says, where something is held out."""
        if not self.rows:
            return {}
        counts = {
            "rows": self.rows,
            "of_rows": self.of_rows,
            "contents": self.contents,
            "of_contents": self.of_contents,
        }
        return counts | ({"cost": self.cost} if self.cost else {})

    @property
    def cost(self) -> str:
        """What few rows pay for being measured, in a sentence; empty where they are many."""
        if not self.drawn or not self.rows or self.of_rows >= FEW:
            return ""
        are = "are" if self.rows > 1 else "is"
        return (
            f"{self.rows} of {self.of_rows} rows {are} held out and not trained on; data.held_out=0 trains "
            f"on all {self.of_rows}, and measures no loss"
        )

    def told(self) -> list[str]:
        """The same for a person."""
        if not self.rows:
            same = self.drawn and self.of_rows > 1 and self.of_contents == 1
            return [f"nothing is held out: all {self.of_rows:,} rows hold the same content"] if same else []
        distinct = (
            f" ({self.contents:,} of {self.of_contents:,} that differ)"
            if self.of_contents < self.of_rows
            else ""
        )
        line = (
            f"held out: {self.rows:,} of {self.of_rows:,} rows{distinct}; a loss stands on "
            f"{tokens_measured(self.tokens, briefly=True)}"
        )
        leak = (
            "all rows to train on have the tokens of rows in data.held_out_path: the loss is over what was "
            "trained on"
            if self.trained
            else ""
        )
        return [line, *filter(None, (self.cost, leak))]


def contents(documents: Spool) -> NDArray[np.int64]:
    """[D] for each document, the number of the first row that holds the same content: rows that share a
    document's tokens do, and so do those that share one with these, and so on."""
    units, of = np.unique(documents.units, return_inverse=True)
    alike = np.unique(documents.hashes, return_inverse=True)[1]
    first = np.arange(len(units))
    while True:
        least = np.full(int(alike.max()) + 1, len(units))
        np.minimum.at(least, alike, first[of])
        moved = first.copy()
        np.minimum.at(moved, of, least[alike])
        moved = moved[moved]
        if (moved == first).all():
            found: NDArray[np.int64] = units[first][of]
            return found
        first = moved


def hold_out(
    documents: Spool,
    apart: Sequence[bool],
    sources: Sequence[FileCounts],
    share: float | Literal["auto"],
    seed: int,
) -> HeldOut:
    """The rows of files whose place in `apart` is true, and others of the same content; or where there is
    no such file, a `share` of all, by content.
    """
    content = contents(documents)
    numbers, of = np.unique(content, return_inverse=True)
    units = np.unique(documents.units, return_index=True)[1]  # a row's documents have one content
    rows = np.bincount(of[units], minlength=len(numbers))
    own = np.array(apart, dtype=np.bool_)[documents.files]
    alike = own
    if own.any():
        alike = np.isin(of, of[own])
        which = own if alike.all() else alike  # else nothing would be left to train on
    else:
        tokens = np.bincount(of, documents.lengths).astype(np.int64)
        which = np.isin(of, draw_held_out(numbers.tolist(), rows.tolist(), tokens.tolist(), share, seed))
    for file, count in enumerate(np.bincount(documents.files[which], minlength=len(sources)).tolist()):
        sources[file].held_out = count
    return HeldOut(
        documents=which,
        tokens=int(documents.trained[which].sum()),
        rows=len(np.unique(documents.units[which])),
        of_rows=int(rows.sum()),
        contents=len(np.unique(of[which])),
        of_contents=len(numbers),
        drawn=not own.any(),
        trained=bool(own.any() and alike.all() and not own.all()),
    )
