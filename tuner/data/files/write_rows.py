"""Rows → a file, whole or not at all, in the format that its ending names: JSONL, JSON, CSV, TSV or Parquet.

A table has all columns in all rows. In CSV a value that is no text is written as JSON, and an absent one as
nothing; in Parquet a column whose values are of several kinds is written as JSON in texts.
"""

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tuner.errors import ConfigError, StoreError
from tuner.files import disk_full, sync_to_disk

WRITES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""the endings of files that can be written"""


def check_ending(out: Path) -> None:
    """Raise ConfigError for a file that can't be written by its name."""
    if out.suffix.lower() not in WRITES:
        raise ConfigError(
            f"{out.name}: the ending says in which format answers are written, and there are "
            f"{', '.join(WRITES[:-1])} and {WRITES[-1]}."
        )


def write_rows(
    out: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], like: Path | None = None
) -> None:
    """Write all rows. `columns` are their keys, for a table; `like` is a Parquet file whose columns of the
    same names have the types to write. Raises StoreError for a full disk.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.suffix.lower() == ".parquet":
            _parquet(part, rows, columns, like)
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                _text(file, out.suffix.lower(), rows, columns)
        sync_to_disk(part)
        part.rename(out)
    except OSError as error:
        if disk_full(error):
            raise StoreError(
                f"The disk that holds {out.parent} is full; free some space and run the same command again."
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _text(file: IO[str], ending: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if ending in (".csv", ".tsv"):
        table = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",", lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        return
    for number, row in enumerate(rows):
        if ending == ".json":
            file.write("[\n" if number == 0 else ",\n")
        file.write(_json(row) + ("" if ending == ".json" else "\n"))
    if ending == ".json":
        file.write("\n]\n" if file.tell() else "[]\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _json(value)


def _parquet(
    part: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], like: Path | None
) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    known = {} if like is None else {field.name: field.type for field in pq.read_schema(like)}
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for row in rows:
        for column in columns:
            values[column].append(row.get(column))
    arrays = {}
    for column, found in values.items():
        try:
            arrays[column] = pa.array(found, type=known.get(column))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            arrays[column] = pa.array(
                [None if value is None else _cell(value) for value in found], pa.string()
            )
    pq.write_table(pa.table(arrays), part)
