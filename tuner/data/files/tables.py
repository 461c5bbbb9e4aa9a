"""Tables → rows, as objects whose keys are the columns: CSV, Parquet, Arrow.

Each function gives (row, about how many bytes it is). A CSV's first line names the columns, and all its
values are texts; a line `sep=;` before it, as Excel writes, says what they are apart by. Absent values of a
Parquet or Arrow file are None, also the absent keys of an object inside a row: a table has all keys in all
rows. NaN, which pandas writes where there is no value, is None too.
"""

import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tuner.data.files.chunk import CHUNK, TooLong, Unreadable
from tuner.data.files.json_window import OTHERWISE
from tuner.errors import DataError
from tuner.hardware.limits import reading, row_limit

SIGN = re.compile(r'"?sep=(.)"?')
"""a line before the columns that says what they are apart by"""
ROWS = 10_000
"""at most so many rows of a Parquet file at once, however short they look"""


def separated(stream: IO[bytes], file: Path, tabs: bool) -> Iterator[tuple[Any, int]]:
    """The rows of a CSV in UTF-8, its columns apart by tabs or by what its first line has most of: commas,
    semicolons or tabs.

    A row with too few or too many cells, or with a broken quote, is Unreadable. Raises DataError where the
    columns can't be told.
    """
    csv.field_size_limit(row_limit())  # of the whole process; 131,072 otherwise, which a long answer exceeds
    with io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text_file:
        sign = "\t" if tabs else ""
        text = _lines(text_file)
        for blank, head in enumerate(text):
            if said := SIGN.fullmatch(head.strip()):
                sign = said[1]
            elif head.strip():
                yield from _cells(head, blank, text, file, sign)  # the rest of the text is read there


def _lines(text: IO[str]) -> Iterator[str]:
    limit = row_limit()
    for number in itertools.count(1):
        line = text.readline(limit + 1)
        if not line:
            return
        if len(line) > limit:
            raise TooLong(f"line {number}")
        yield line


def _cells(head: str, blank: int, text: Iterable[str], file: Path, sign: str) -> Iterator[tuple[Any, int]]:
    unquoted = re.sub('"[^"]*"', "", head)
    reader = csv.reader(
        itertools.chain([head], text), delimiter=sign or max(",;\t", key=unquoted.count), strict=True
    )
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise DataError(
            f"{file}:{blank + 1}: no valid CSV ({error}) in the first line, which should name the columns."
        ) from error
    _check_names(names, file)
    while True:
        line = blank + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "limit" in str(error):
                raise TooLong(f"a cell in line {line}") from error
            yield Unreadable(reason=_torn(line, blank + reader.line_num, error)), 0
            continue
        if not cells or (len(cells) == 1 < len(names) and not cells[0].strip()):
            continue
        joined = "".join(cells)
        if problem := _unfit(cells, joined, names):
            yield Unreadable(reason=f"in line {line}: {problem}"), len(joined)
        else:
            yield dict(zip(names, cells, strict=True)), len(joined)


def _torn(line: int, last: int, error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return (
            f"in line {line}: a quote is opened and not closed; all up to the end of the file, line {last}, "
            "would be one cell"
        )
    return f"in line {line}: no valid CSV ({error}); a quote inside a quoted cell is written twice"


def _unfit(cells: Sequence[str], joined: str, names: Sequence[str]) -> str | None:
    if len(cells) != len(names):
        return (
            f"{len(cells)} cell{'s' if len(cells) > 1 else ''}, where the first line names {len(names)} "
            "columns"
        )
    if "\0" in joined:
        return "a NUL byte, where text was expected"
    if not joined.isascii():
        try:
            joined.encode()
        except UnicodeEncodeError as error:
            return f"no valid UTF-8 (byte 0x{ord(joined[error.start]) & 0xFF:02x}); {OTHERWISE}"
    return None


def _schema(file: Path, *, is_parquet: bool, is_file: bool) -> Any:
    import pyarrow as pa
    from pyarrow import parquet as pq

    if is_parquet:
        return pq.read_schema(file)
    with pa.memory_map(str(file)) as content:
        return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(content).schema


def keys(file: Path) -> frozenset[str] | None:
    """The names of a table's columns, and of all fields inside them; None where the file is none, or can't
    be read as one.
    """
    with file.open("rb") as stream:
        head = stream.read(6)
    if not head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        return None
    import pyarrow as pa

    try:
        with reading(str(file)):
            schema = _schema(file, is_parquet=head.startswith(b"PAR1"), is_file=head.startswith(b"ARROW1"))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None
    found: set[str] = set()
    open_ = [schema.field(i) for i in range(len(schema))]
    while open_:
        field = open_.pop()
        found.add(field.name)
        open_ += [field.type.field(i) for i in range(field.type.num_fields)]
    return frozenset(found)


def parquet(source: Path | IO[bytes], file: Path) -> Iterator[tuple[Any, int]]:
    """The rows of a Parquet file, decoded few at a time however large its row groups are."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=CHUNK) as table:
            _check_names(table.schema_arrow.names, file)
            told = table.metadata
            size = sum(told.row_group(i).total_byte_size for i in range(told.num_row_groups)) // max(
                told.num_rows, 1
            )
            for batch in table.iter_batches(min(max(CHUNK // max(size, 1), 1), ROWS), use_threads=False):
                yield from _rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # also of names
        raise DataError(f"{file} can't be read as Parquet ({_first_line(error)}).") from error


def arrow(source: Path | IO[bytes], file: Path, streamed: bool) -> Iterator[tuple[Any, int]]:
    """The rows of an Arrow IPC file, or of an IPC stream, which is what `datasets` saves."""
    import pyarrow as pa

    try:
        with (
            pa.memory_map(str(source)) if isinstance(source, Path) else pa.PythonFile(source, "r") as content
        ):
            if streamed:
                with pa.ipc.open_stream(content) as stream:
                    _check_names(stream.schema.names, file)
                    for batch in stream:
                        _check_batch(batch)
                        yield from _rows(batch)
            else:
                with pa.ipc.open_file(content) as table:
                    _check_names(table.schema.names, file)
                    for i in range(table.num_record_batches):
                        _check_batch(batch := table.get_batch(i))
                        yield from _rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # also of names
        raise DataError(f"{file} can't be read as Arrow ({_first_line(error)}).") from error


def _check_batch(batch: Any) -> None:
    """Raise ArrowInvalid where offsets or lengths point outside of the batch, into memory that is not the
    file's. Text that is no UTF-8 is for its row to say.
    """
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for column in batch.columns:
            column.view(_bytes_for_text(column.type)).validate(full=True)


def _bytes_for_text(kind: Any) -> Any:
    """The type with bytes in place of text, at any depth: the same in memory."""
    import pyarrow as pa

    types = pa.types
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string_view(kind):
        return pa.binary_view()
    inner = [kind.field(i).with_type(_bytes_for_text(kind.field(i).type)) for i in range(kind.num_fields)]
    if types.is_struct(kind):
        return pa.struct(inner)
    if types.is_list(kind):
        return pa.list_(inner[0])
    if types.is_large_list(kind):
        return pa.large_list(inner[0])
    if types.is_fixed_size_list(kind):
        return pa.list_(inner[0], kind.list_size)
    return kind


def _rows(batch: Any) -> Iterator[tuple[Any, int]]:
    _check_cells(batch)
    size = batch.nbytes // max(batch.num_rows, 1) + 1
    step = max(CHUNK // size, 1)
    for start in range(0, batch.num_rows, step):
        for row in _values(batch.slice(start, step)):
            yield row, size


def _check_cells(batch: Any) -> None:
    """Raise TooLong where a text is longer than machine.row_limit."""
    import pyarrow as pa
    from pyarrow import compute

    if batch.nbytes <= (limit := row_limit()):
        return
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if any(is_text(column.type) for is_text in texts):
            longest = compute.max(compute.binary_length(column)).as_py() or 0
            if longest > limit:
                raise TooLong(f"a cell of the column {name!r}")


def _values(batch: Any) -> list[Any]:
    """Arrow's values as Python's; what can't be one, such as bytes that should be UTF-8, makes its row
    Unreadable.
    """
    try:
        values: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [Unreadable(reason=f"a value that can't be read ({_first_line(error)})")]
        return [value for i in range(batch.num_rows) for value in _values(batch.slice(i, 1))]
    return [_numbers(value) for value in values] if any(map(_has_floats, batch.schema.types)) else values


def _has_floats(kind: Any) -> bool:
    """Whether a column of this type may hold NaN, at any depth."""
    import pyarrow as pa

    return bool(pa.types.is_floating(kind)) or any(
        _has_floats(kind.field(i).type) for i in range(kind.num_fields)
    )


def _numbers(value: Any) -> Any:
    """The same, with None for what is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    return [_numbers(inner) for inner in value] if isinstance(value, list) else value


def _check_names(names: Sequence[str], file: Path) -> None:
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise DataError(
            f"{file}: the column {twice[0]!r} is there twice, and one of the two would be lost. Rename or "
            "remove it."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
