"""One file → chunks of raw rows, streamed: a chunk is about 1 MiB, and the next is read when it is asked for.

    gzip, zstd → UTF-16, GB18030 … → what is it? → chunks → values
    encodings    encodings           here, kinds   here, lists, wrapped, tables

What a file is, its content says: Parquet and Arrow by their first bytes, what is text by its first rows
(`file_kind`). JSONL is cut without looking into the lines, which are parsed by `parse_rows`, maybe in another
process; all others have to be parsed to be cut. A comma behind a line of JSONL is passed over, as in a list
that lost its brackets.

Not read: XML, spreadsheets, archives; each is refused in words.

How to add a kind of file: a function that yields (row, size) in `tables`, the bytes or the name it is known
by in `_pieces` or `kinds`, its ending in ENDINGS.
"""

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tuner.data.files import encodings, file_kind, json_list, json_object, json_window, tables
from tuner.data.files.chunk import CHUNK, Chunk, TooLong, Unreadable
from tuner.errors import DataError
from tuner.hardware.limits import read_each, reading, row_limit

__all__ = ["ENDINGS", "Chunk", "Unreadable", "chunks", "count_rows", "file_note", "is_readable", "parse_rows"]

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""how files that can be read are called, as a rule"""
PACKED = (".gz", ".zst")
"""what may follow"""
BLANK = " \t\r\v\f"
"""what a line of no row consists of; the ASCII ones only, so that bytes and text agree"""
TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
"""how Parquet, Arrow and Arrow's streams begin"""
NEWLINE = b"\n"
ROW = 100
"""bytes that a row costs beside its text: many short ones are no large chunk"""


def is_readable(name: str) -> bool:
    """Whether a file of this name is one that can be read, as a rule."""
    return _plain_name(name).endswith(ENDINGS)


def chunks(file: Path, encoding: str = "auto", letters: bool = False) -> Iterator[Chunk]:
    """Cut a file; the same cuts every time. A file without rows has none.

    encoding  what a text file is written in; `auto` is UTF-8, or what a byte order mark says
    letters   the rows were said to be plain texts (data.format=text), so a file that holds no rows is one,
              whatever it is called
    Raises DataError for a file that can't be read, or not to its end, and ConfigError for an encoding that
    isn't known.
    """
    try:
        yield from read_each(str(file), _pieces(file, encoding, letters))
    except TooLong as error:
        raise DataError(f"{file}: {error}") from error
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{file} can't be read ({error.strerror}).") from error
        ended = isinstance(error, EOFError) or "Truncated" in str(error)
        found = (
            "its packed data breaks off before its end" if ended else f"its packed data is damaged ({error})"
        )
        raise DataError(f"{file} can't be unpacked: {found}. Copy or download it again.") from error


def parse_rows(chunk: Chunk) -> Iterator[tuple[int, Any | Unreadable]]:
    """The rows of a chunk, parsed, each with its number. Blank lines are no rows."""
    if chunk.values is not None:
        yield from enumerate(chunk.values, chunk.first)
    if chunk.lines is None:
        return
    for number, line in enumerate(_split(chunk.lines), chunk.first):
        try:
            text = (str(line, "utf-8") if isinstance(line, bytes) else line).strip(BLANK)
            if not text:
                continue
            value, end = json_window.decode_json(text, 0)
            if end < len(text) and text[end:].strip(BLANK) != ",":
                raise json.JSONDecodeError("Extra data", text, end)
        except (ValueError, RecursionError) as error:
            yield number, Unreadable(reason=json_window.why_unreadable(error))
        else:
            yield number, value


def _split(lines: bytes) -> Sequence[str | bytes]:
    try:
        return lines.decode().split("\n")  # and not splitlines(), which also ends a line at U+2028
    except UnicodeDecodeError:
        return lines.split(b"\n")


def count_rows(chunk: Chunk) -> int:
    """The number of rows that `parse_rows` gives, without parsing them."""
    if chunk.values is not None:
        return len(chunk.values)
    return sum(map(bool, map(bytes.strip, (chunk.lines or b"").split(b"\n"))))


def _pieces(file: Path, encoding: str, letters: bool) -> Iterator[Chunk]:
    with encodings.open_unpacked(file) as stream:
        head = stream.read(encodings.HEAD)
    if not head:
        return
    if head.startswith(b"PAR1"):
        with _seekable(file) as source:
            yield from _gathered(tables.parquet(source, file))
    elif head.startswith(b"ARROW1"):
        with _seekable(file) as source:
            yield from _gathered(tables.arrow(source, file, streamed=False))
    elif head.startswith(b"\xff\xff\xff\xff"):
        with encodings.open_unpacked(file) as stream:
            yield from _gathered(
                tables.arrow(stream if encodings.is_packed(stream) else file, file, streamed=True)
            )
    else:
        yield from _text_pieces(file, head, encoding, letters)


def _text_pieces(file: Path, head: bytes, encoding: str, letters: bool) -> Iterator[Chunk]:
    opened, kind = _text(file, head, encoding, letters)
    with opened() as stream:
        match kind.of:
            case "lines":
                yield from _lines(stream)
            case "list":
                yield from _gathered(json_list.items(stream, file))
            case "under":
                yield from _gathered(json_object.items_under(stream, file, kind.key))
            case "object":
                yield from _gathered([json_list.first_value(stream)])
            case "table":
                yield from _gathered(tables.separated(stream, file, tabs=kind.tabs))
            case "texts":
                yield from _texts(stream)
            case "letters":
                yield from _documents(stream)


def _text(
    file: Path, head: bytes, encoding: str, letters: bool
) -> tuple[file_kind.Opened, file_kind.FileKind]:
    codec = encodings.codec_of(head, encoding, file)
    encodings.refuse_binary(head, codec, file)

    def opened() -> IO[bytes]:
        return encodings.in_utf8(encodings.open_unpacked(file), head, codec, file)

    return opened, file_kind.kind_of(_plain_name(file.name), opened, file, letters)


def file_note(file: Path, encoding: str = "auto", letters: bool = False) -> str:
    """What is to be said of a file beside its rows; mostly nothing. Raises what `chunks` raises."""
    with reading(str(file)):
        with encodings.open_unpacked(file) as stream:
            head = stream.read(encodings.HEAD)
        if not head or head.startswith(TABLES):
            return ""
        return _text(file, head, encoding, letters)[1].note


def _plain_name(name: str) -> str:
    name = name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name


@contextmanager
def _seekable(file: Path) -> Iterator[Path | IO[bytes]]:
    """The file, or an unpacked copy in a temporary place: some kinds are read from their end."""
    with encodings.open_unpacked(file) as stream:
        if not encodings.is_packed(stream):
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy, CHUNK)
            copy.seek(0)
            yield copy


def _gathered(rows: Iterable[tuple[Any, int]]) -> Iterator[Chunk]:
    first, size, taken = 1, 0, list[Any]()
    for row, weight in rows:
        taken.append(row)
        size += weight + ROW
        if size >= CHUNK:
            yield Chunk(first=first, values=taken)
            first, size, taken = first + len(taken), 0, []
    if taken:
        yield Chunk(first=first, values=taken)


def _lines(stream: IO[bytes]) -> Iterator[Chunk]:
    first, limit = 1, row_limit()
    while piece := stream.read(CHUNK):
        lines = piece + (rest := stream.readline(limit + 1))
        if len(rest) > limit:
            raise TooLong(f"line {first + piece.count(NEWLINE)}")
        yield Chunk(first=first, lines=lines)
        first += lines.count(b"\n")


def _documents(stream: IO[bytes]) -> Iterator[Chunk]:
    """The text as one row; a long one in rows of at most 1 MiB, which one after the other are the text
    again.
    """
    line, rest = 1, b""
    while text := rest + stream.read(CHUNK + 1 - len(rest)):
        end = len(text) if len(text) <= CHUNK else _border(text)
        text, rest = text[:end], text[end:]
        if text.strip():
            yield Chunk(first=line, values=[_document(text, line)])
        line += text.count(b"\n")


def _texts(stream: IO[bytes]) -> Iterator[Chunk]:
    """Each line that isn't blank as a text."""
    for chunk in _lines(stream):
        taken: list[Any] = []
        for number, line in enumerate([*(chunk.lines or b"").split(NEWLINE), b""], chunk.first):
            if line.strip():
                taken.append(_document(line.rstrip(b"\r"), number))
            elif taken:
                yield Chunk(first=number - len(taken), values=taken)
                taken = []


def _border(text: bytes) -> int:
    """Where to cut a text longer than a chunk: behind a blank line, else behind a line, else behind a
    word, else between two letters.
    """
    half = CHUNK // 2
    for ends in ((b"\n\n", b"\n\r\n"), (b"\n",), (b" ",)):
        if (
            border := max(at + len(end) if (at := text.rfind(end, half, CHUNK)) >= 0 else -1 for end in ends)
        ) > 0:
            return border
    return next((at for at in range(CHUNK, CHUNK - 4, -1) if text[at] & 0xC0 != 0x80), CHUNK)


def _document(text: bytes, line: int) -> Any:
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        where = line + text.count(NEWLINE, 0, error.start)
        return Unreadable(reason=f"in line {where}: {json_window.why_unreadable(error)}")
    if "\0" in decoded:
        return Unreadable(
            reason=(
                f"in line {line + text.count(NEWLINE, 0, text.index(0))}: a NUL byte, where text was expected"
            )
        )
    return {"text": decoded.replace("\r\n", "\n")}
