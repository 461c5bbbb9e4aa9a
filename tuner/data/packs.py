"""Packs of token ids on disk: an Arrow IPC file, written once and read through a memory map.

    column    a row (one pack)      meaning
    ids       list<int32>  [T]      token ids, the documents one after the other
    trained   list<bool>   [T]      the token is a target, predicted from the one before it
    lengths   list<int32>  [D]      tokens of each document; they sum to T
    files     list<int32>  [D]      where the document came from: index into the ledger's sources,
    lines     list<int32>  [D]      and the line (JSONL) or the item's number (JSON), from 1
    roles     list<int8>   [D]      what each document is in a comparison of answers: a DocumentRole

`roles` is there only where a document has one. The bytes depend on the packs only: fixed batches of rows, no
compression, no metadata.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuner.errors import StoreError

VERSION = 1
"""bumped when the same packs would be written as other bytes"""

COLUMNS = {"ids": np.int32, "trained": np.bool_, "lengths": np.int32, "files": np.int32, "lines": np.int32}
SCHEMA = pa.schema([(name, pa.list_(pa.from_numpy_dtype(np.dtype(kind)))) for name, kind in COLUMNS.items()])
WITH_ROLES = SCHEMA.append(pa.field("roles", pa.list_(pa.int8())))
BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Documents that are trained in one row; attention never crosses from one into another."""

    ids: NDArray[np.int32]
    """[T]"""
    trained: NDArray[np.bool_]
    """[T]; False at the first token of each document"""
    lengths: NDArray[np.int32]
    """[D]"""
    files: NDArray[np.int32]
    """[D]"""
    lines: NDArray[np.int32]
    """[D]"""
    roles: NDArray[np.int8] | None = None
    """[D] tuner.data.conversation.DocumentRole of each document; None where the file has no roles"""


def write_packs(path: Path, packs: Iterable[Pack]) -> None:
    """Write `packs` to a new file. An empty iterable gives a file of no rows. Either all packs have roles, or
    none.
    """
    rows = iter(packs)
    batch = list(islice(rows, BATCH))
    schema = WITH_ROLES if batch and batch[0].roles is not None else SCHEMA
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while batch:
            writer.write_batch(pa.record_batch([_column(batch, field) for field in schema], schema=schema))
            batch = list(islice(rows, BATCH))


def _column(batch: list[Pack], field: pa.Field) -> pa.ListArray:
    parts = [getattr(pack, field.name) for pack in batch]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int32)
    kind = COLUMNS.get(field.name, np.int8)  # and not Arrow's to_pandas_dtype, which may want pandas for it
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.concatenate(parts).astype(kind, copy=False))
    )


class Packs:
    """A file of packs, opened: `len(packs)`, `packs[i]`, iteration. Arrays of numbers are views into the
    map, and read-only.
    """

    def __init__(self, batches: list[Any], length: int) -> None:
        self._batches, self._length = batches, length

    @classmethod
    def open(cls, path: Path) -> "Packs":
        """Map the file at `path`. Raises StoreError when it is no such file, or cut off."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(
                f"{path} can't be read as packs of tokens ({error}). Build it again with redo=tokenize."
            ) from error
        if reader.schema not in (SCHEMA, WITH_ROLES):
            raise StoreError(
                f"{path} holds other columns than packs of tokens have. Build it again with redo=tokenize."
            )
        return cls(batches, sum(batch.num_rows for batch in batches))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Pack:
        if not 0 <= index < self._length:
            raise IndexError(f"pack {index} of {self._length}")
        batch, row = self._batches[index // BATCH], index % BATCH
        # the booleans are bits on disk, so they are the one column that is copied
        columns = {
            name: batch.column(name)[row].values.to_numpy(zero_copy_only=name != "trained")
            for name in batch.schema.names
        }
        return Pack(**columns)

    def __iter__(self) -> Iterator[Pack]:
        return (self[index] for index in range(self._length))
