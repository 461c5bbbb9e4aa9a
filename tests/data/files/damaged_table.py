"""A child of test_damaged_tables: reads damaged copies of a table, and says of each what became of it."""

import io
import random
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet as pq

from tuner.data.files.tables import arrow, parquet
from tuner.errors import DataError


def whole(kind: str) -> bytes:
    """A table of text, nested rows, numbers and a dictionary, in several batches."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"frage {i} ä"},
                {"role": "assistant", "content": "antwort" * (i % 5)},
            ],
            "n": i,
            "f": i / 3,
            "kind": f"k{i % 3}",
        }
        for i in range(60)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(3, "kind", table["kind"].dictionary_encode())
    out = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=20)
        return out.getvalue()
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    return out.getvalue()


def damaged(kind: str, number: int, seed: int) -> bytes:
    """A copy with one to four bytes changed."""
    dice, copy = random.Random(f"{seed}/{kind}/{number}"), bytearray(whole(kind))
    for _ in range(dice.randint(1, 4)):
        copy[dice.randrange(len(copy))] = dice.randrange(256)
    return bytes(copy)


def read(path: Path, kind: str) -> str:
    try:
        for row in parquet(path, path) if kind == "parquet" else arrow(path, path, kind == "stream"):
            repr(row)
    except DataError:
        return "refused"
    return "read"


def main() -> None:
    """kind, seed, the first number and the one behind the last; a line for each."""
    kind, seed, begin, end, scratch = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
    for number in range(begin, end):
        path = scratch / f"{kind}-{number}"
        path.write_bytes(damaged(kind, number, seed))
        print(number, end=" ", flush=True)
        print(read(path, kind), flush=True)


if __name__ == "__main__":
    main()
