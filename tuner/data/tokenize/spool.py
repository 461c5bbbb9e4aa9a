"""Documents on disk while a data set is read: their tokens in one file, a few numbers of each in memory, so
that a set may be larger than that.

one uint32 a token: id · 2 + (1 where it is trained)
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.packs import Pack
from tuner.data.tokenize.job import TokenizedRows

COLUMNS = {
    "starts": np.int64,
    "lengths": np.int32,
    "trained": np.int32,
    "files": np.int32,
    "lines": np.int32,
    "units": np.int64,
}
COLUMNS |= {"weights": np.int32, "hashes": np.uint64}


class Spool:
    """Written with `add`, then, after `done`, read by index; `close` forgets the tokens.

    starts   of its first token in the file            lengths  tokens
    trained  how many of them are trained              files    index into the ledger's sources
    units    number of the row (or tree) it is of      lines    line or item number of that, from 1
    weights  how many rows that is                     hashes   of its ids
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    trained: NDArray[np.int32]
    files: NDArray[np.int32]
    lines: NDArray[np.int32]
    units: NDArray[np.int64]
    weights: NDArray[np.int32]
    hashes: NDArray[np.uint64]

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._end = path, path.open("w+b"), 0
        self._parts: dict[str, list[NDArray[Any]]] = {
            name: [np.zeros(0, dtype=kind)] for name, kind in COLUMNS.items()
        }

    def add(
        self, made: TokenizedRows, *, file: int, first: int, repeats: NDArray[np.int64] | None = None
    ) -> None:
        """Add what was made of some rows of a file, the first of which is the row number `first` of all;
        each as often as `repeats` says.
        """
        starts = np.concatenate([[0], np.cumsum(made.lengths, dtype=np.int64)])
        columns = {
            "starts": starts[:-1] + self._end,
            "lengths": made.lengths,
            "trained": np.add.reduceat(made.trained, starts[:-1], dtype=np.int32),
            "files": np.full(len(made.lengths), file),
            "lines": made.lines,
            "units": made.places + first,
            "weights": made.weights,
            "hashes": made.hashes,
        }
        for name, column in columns.items():
            self._parts[name].append(column if repeats is None else np.repeat(column, repeats))
        self._file.write((made.ids.astype(np.uint32) << 1 | made.trained).astype(np.uint32).tobytes())
        self._end += len(made.ids)

    def done(self) -> None:
        """All were added."""
        self._file.flush()
        for name, kind in COLUMNS.items():
            setattr(self, name, np.concatenate(self._parts.pop(name)).astype(kind, copy=False))

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Forget the documents that `which` does not mark."""
        for name in COLUMNS:
            setattr(self, name, getattr(self, name)[which])

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
        )

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
