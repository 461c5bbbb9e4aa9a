"""Documents on disk while a data set is read: their tokens in one file, a few numbers of each in memory, so
that a set may be larger than that.

one uint32 a token: id · 2 + (1 where it is trained)
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.data.conversation import DocumentRole
from tuner.data.packs import Pack
from tuner.data.tokenize.job import TokenizedRows

ROW = np.dtype(
    [
        ("starts", np.int64),
        ("units", np.int64),
        ("hashes", np.uint64),
        ("lengths", np.int32),
        ("trained", np.int32),
        ("files", np.int32),
        ("lines", np.int32),
        ("weights", np.int32),
        ("roles", np.int8),
    ]
)
"""what is kept of a document in memory"""


class Spool:
    """Written with `add`, then, after `done`, read by index; `close` forgets the tokens."""

    starts: NDArray[np.int64]
    """[D] of its first token in the file"""
    lengths: NDArray[np.int32]
    """[D] tokens"""
    trained: NDArray[np.int32]
    """[D] how many of them are trained"""
    files: NDArray[np.int32]
    """[D] index into the ledger's sources"""
    units: NDArray[np.int64]
    """[D] number of the row (or tree) that it is of"""
    lines: NDArray[np.int32]
    """[D] line or item number of that, from 1"""
    weights: NDArray[np.int32]
    """[D] how many rows that is"""
    hashes: NDArray[np.uint64]
    """[D] of its ids"""
    roles: NDArray[np.int8]
    """[D] what it is in a comparison of answers: a DocumentRole"""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._end = path, path.open("w+b"), 0
        self._added = [np.zeros(0, dtype=ROW)]

    def add(
        self, made: TokenizedRows, *, file: int, first: int, repeats: NDArray[np.int64] | None = None
    ) -> None:
        """Add what was made of some rows of a file, the first of which is the row number `first` of all;
        each as often as `repeats` says.
        """
        starts = np.concatenate([[0], np.cumsum(made.lengths, dtype=np.int64)])
        table = np.zeros(len(made.lengths), dtype=ROW)
        table["starts"] = starts[:-1] + self._end
        table["lengths"] = made.lengths
        table["trained"] = np.add.reduceat(made.trained, starts[:-1], dtype=np.int32)
        table["files"] = file
        table["lines"] = made.lines
        table["units"] = made.places + first
        table["weights"] = made.weights
        table["hashes"] = made.hashes
        table["roles"] = made.roles if len(made.roles) else DocumentRole.NONE
        self._added.append(table if repeats is None else table[_repeated(table, repeats)])
        self._file.write((made.ids.astype(np.uint32) << 1 | made.trained).astype(np.uint32).tobytes())
        self._end += len(made.ids)

    def done(self) -> None:
        """All were added."""
        self._file.flush()
        self._show(np.concatenate(self._added))
        self._added = []

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Forget the documents that `which` does not mark."""
        self._show(self._table[which])

    def _show(self, table: NDArray[np.void]) -> None:
        self._table = table
        self.starts, self.lengths, self.trained = table["starts"], table["lengths"], table["trained"]
        self.files, self.units, self.lines = table["files"], table["units"], table["lines"]
        self.weights, self.hashes, self.roles = table["weights"], table["hashes"], table["roles"]
        self._compares = bool(self.roles.any())

    def __len__(self) -> int:
        return len(self.lengths)

    def pack(self, members: NDArray[np.int64]) -> Pack:
        """The documents `members`, one after the other."""
        # pread, not a map: what was mapped would count as this process's memory
        handle, starts, lengths = self._file.fileno(), self.starts, self.lengths
        data = b"".join(os.pread(handle, 4 * int(lengths[i]), 4 * int(starts[i])) for i in members.tolist())
        tokens = np.frombuffer(data, dtype=np.uint32)
        return Pack(
            ids=(tokens >> 1).astype(np.int32),
            trained=(tokens & 1).astype(np.bool_),
            lengths=lengths[members],
            files=self.files[members],
            lines=self.lines[members],
            roles=self.roles[members] if self._compares else None,
        )

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _repeated(table: NDArray[np.void], repeats: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which documents, each as often as `repeats` says, one after the other; two sides that are compared are
    repeated as a pair.
    """
    which = np.repeat(np.arange(len(table)), repeats)
    if not (table["roles"] == DocumentRole.REJECTED).any():
        return which
    copy = np.arange(len(which)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    found: NDArray[np.int64] = which[np.lexsort((which, copy, table["units"][which]))]
    return found
