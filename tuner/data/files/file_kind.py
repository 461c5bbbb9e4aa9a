"""What a file of text is: rows as lines of JSON, as one JSON list, under a key of one JSON object, or as a
table; or letters.

The content decides, and the name only where the content leaves it open: a `.csv` whose lines are JSON objects
is JSONL, a `.txt` or `.md` is rows where its first lines are, and prose that merely begins with a bracket is
prose. A name that says nothing (`.py`, none at all) is asked about: as rows its lines would be as many
errors, and whether it is to be trained as a text is the user's to say (data.format=text).
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from tuner.data.conversation import RowError
from tuner.data.files import json_list, json_object, json_window
from tuner.data.formats.column_names import ABOUT, SAYING, is_pair
from tuner.data.formats.detect import sniff
from tuner.data.formats.guanaco import is_guanaco_conversation
from tuner.data.formats.templated import is_templated_conversation
from tuner.errors import DataError

Opened = Callable[[], IO[bytes]]
"""opens the text, in UTF-8, at its begin"""

JSON = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
PROSE = (".txt", ".text", ".md", ".markdown", ".mdown", ".rst", ".tex", ".org", ".adoc", ".asciidoc")
"""endings of plain text"""

PYTHON = re.compile(rb"\{'\w+': .*\},?")
LINES = 3
"""lines, or records of a table, that are looked at"""
LONG = 1 << 26
"""bytes of a line that is still looked at"""
MANY = 20
"""lines among which one of JSON makes a file of no known name JSONL"""
COLUMNS = SAYING | {"label", "title", "code"}
"""names of columns by which a table is known, whatever its file is called, where another of them or of
what tells of a row is there
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileKind:
    """How a file is read."""

    of: Literal["lines", "list", "under", "object", "table", "texts", "letters"]
    """JSONL; one JSON list; a list under a key of one JSON object; such an object that is a row itself;
    CSV; a text in each line; one text
    """
    tabs: bool = False
    """of a table: its columns are apart by tabs, whatever its first line has most of"""
    key: str = ""
    """that the rows are under"""
    note: str = ""
    """what is to be said of it"""


def kind_of(name: str, opened: Opened, file: Path, letters: bool) -> FileKind:
    """What the text is that `opened` opens.

    name     of the file, in small letters, without the ending of what it is packed with
    letters  the rows were said to be plain texts: what holds no rows with a column `text`, and is called
             neither JSON nor CSV, is one
    Raises DataError, naming `file`, where it can't be told.
    """
    if name.endswith(TABLES):
        return _json(opened, file) or FileKind(of="table", tabs=name.endswith(".tsv"))
    if name.endswith(JSON):
        return _named_json(opened, file, letters)
    rows = _json(opened, file) or _table(opened)
    if rows and rows.of == "object" and name.endswith(PROSE) and not _is_row(opened):
        rows = None  # such as settings, in a text about them
    if letters:
        return rows if rows and _has_text(opened, file, rows) else FileKind(of="letters")
    if rows:
        return rows
    first = _lines(opened, MANY)
    if name.endswith(PROSE):
        if 2 * sum(PYTHON.fullmatch(line) is not None for line in first) > len(first):
            return FileKind(of="lines")  # rows as Python prints them, each of which is told to be no JSON
        whole = sum(_is_conversation(line) for line in first)
        return FileKind(of="texts" if 2 * whole > len(first) else "letters")
    if not first or first[0][:1] in b"[{" or any(_value(line) is not None for line in first):
        return _named_json(opened, file, letters)
    raise DataError(
        f"{file} holds no rows that are known: its first line is no JSON, and its name says neither CSV nor "
        "plain text. To train on it as plain text: data.format=text. A table is to be "
        "called .csv or .tsv."
    )


def _named_json(opened: Opened, file: Path, letters: bool) -> FileKind:
    """Of a file that says it is JSON: rows even where some of them are broken."""
    with closing(opened()) as stream:
        if json_list.is_list(stream):
            return FileKind(of="list")
    if found := _json(opened, file):
        return (
            found
            if not letters or found.of != "object" or _has_text(opened, file, found)
            else FileKind(of="letters")
        )
    first = _lines(opened, MANY)
    if letters and not any(isinstance(_value(line), dict | list) for line in first):
        return FileKind(of="letters")
    if first and first[0][:1] not in b'[{"' and _value(first[0]) is None:
        if table := _table(opened):
            return table
        if len(names := _header(opened, known=False)) > 1:
            raise DataError(
                f"{file} looks like a table with the columns {', '.join(names)}, and its name says JSON. "
                "Call it .csv or .tsv."
            )
    _refuse_object(first, file)
    return FileKind(of="lines")


def _json(opened: Opened, file: Path) -> FileKind | None:
    """Rows in JSON, told by the first of them; None for anything else."""
    with closing(opened()) as stream:
        sign = json_list.first_sign(stream)
    if sign not in ("[", "{"):
        return None
    if sign == "[":
        with closing(opened()) as stream:
            item = json_list.first_item(stream)
        if not (isinstance(item, dict) or (isinstance(item, list) and item and json_list.is_turn(item[0]))):
            return None
        with closing(opened()) as stream:
            return FileKind(of="list" if json_list.is_list(stream) else "lines")
    values = [_value(line) for line in _lines(opened, LINES)]
    if all(isinstance(value, dict) for value in values) and len(values) > 1:
        return FileKind(of="lines")
    if isinstance(values[0], dict) and len(values) > 1:
        return None
    with closing(opened()) as stream:
        held = json_object.inspect_object(stream, file)
    if held is None:
        return None if values[0] is None else FileKind(of="lines")
    if key := json_object.rows_key(held, file):
        return FileKind(of="under", key=key, note=json_object.note(held, key))
    return FileKind(of="lines") if isinstance(values[0], dict) else FileKind(of="object")


def _is_row(opened: Opened) -> bool:
    """Whether the object that a text is may be a row: it has the keys of a known format, a question and an
    answer, or a list of objects.
    """
    with closing(opened()) as stream:
        row, _ = json_list.first_value(stream)
    if is_pair(row) or any(
        isinstance(value, list) and any(isinstance(one, dict) for one in value) for value in row.values()
    ):
        return True
    try:
        return bool(sniff(row))
    except RowError:
        return False


def _has_text(opened: Opened, file: Path, rows: FileKind) -> bool:
    """Whether the first row has a text in the column `text`."""
    if rows.of == "table":
        return "text" in _header(opened, known=True)
    with closing(opened()) as stream:
        if rows.of == "under":
            row, _ = next(json_object.items_under(stream, file, rows.key))
        else:
            row = json_list.first_item(stream) if rows.of == "list" else json_list.first_value(stream)[0]
    return isinstance(row, dict) and isinstance(row.get("text"), str)


def _is_conversation(line: bytes) -> bool:
    """Whether a line of text is a conversation as a chat template, or the guanaco form, writes it."""
    line_ = line.decode("utf-8", "replace")
    return is_guanaco_conversation(line_) or is_templated_conversation(line_)


def _lines(opened: Opened, most: int) -> list[bytes]:
    """The first lines that are not blank, stripped. One that is too long to look at is cut, and the last."""
    found: list[bytes] = []
    with closing(opened()) as stream:
        while len(found) < most and (line := stream.readline(LONG)):
            if stripped := line.strip():
                found.append(stripped)
            if len(line) == LONG and not line.endswith(b"\n"):
                break
    return found


def _value(line: bytes) -> Any:
    """The JSON value that a line is, which a comma may follow; None where it is none."""
    try:
        text = line.decode().rstrip(", \t\r")
        value, end = json_window.decode_json(text, 0)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) else None


def _begins(line: bytes) -> bool:
    """Whether a line begins with a whole JSON value."""
    try:
        json_window.decode_json(line.decode(), 0)
    except (ValueError, RecursionError):
        return False
    return True


def _table(opened: Opened) -> FileKind | None:
    """A table whose columns have names that are known, and whose first records are as wide as the first
    line says.
    """
    return FileKind(of="table") if _header(opened, known=True) else None


def _header(opened: Opened, known: bool) -> Sequence[str]:
    """The columns that the first line of a table names; none where it names none. With `known`, two of the
    names must be those of rows.
    """
    lines = _lines(opened, MANY)
    for sign in ",;\t":
        try:
            names, *records = list(_records(lines, sign))
        except (ValueError, csv.Error):
            continue
        fit = (
            len(names) > 1
            and len(set(names)) == len(names)
            and all(re.fullmatch(r"\w[\w .-]{0,40}", cell) for cell in names)
        )
        if (
            fit
            and records
            and all(len(record) == len(names) for record in records)
            and not (known and not _is_known(names))
        ):
            return names
    return ()


def _is_known(names: Sequence[str]) -> bool:
    small = {name.lower() for name in names}
    return not small.isdisjoint(COLUMNS) and len(small & (COLUMNS | ABOUT)) > 1


def _records(lines: Sequence[bytes], sign: str) -> Iterator[list[str]]:
    reader = csv.reader(
        (line.decode("utf-8", "replace") + "\n" for line in lines), delimiter=sign, strict=True
    )
    for cells in itertools.islice(reader, LINES):
        yield [cell.strip() for cell in cells]


def _refuse_object(first: Sequence[bytes], file: Path) -> None:
    """Raise DataError where one JSON object goes over several lines, which as rows would be as many
    errors.
    """
    if len(first) < 2 or not first[0].startswith(b"{") or not first[0].endswith((b"{", b"[", b",", b":")):
        return
    if _value(first[1]) is not None and not first[1].endswith(b","):
        return  # a good row after a broken one
    if _begins(first[0]):
        return  # a good one, with something behind it
    under = re.search(rb'"([^"\\]+)"\s*:\s*\[', first[0] + first[1])
    key = under[1].decode("utf-8", "replace") if under else "data"
    raise DataError(
        f"{file}:1: a JSON object that goes over several lines and is broken, or one of several, where one "
        "row a line (JSONL) or a JSON list of rows was expected. If the rows are a list in it, mend it and "
        f"take that out, as with jq -c '.{key}[]'; if each is a row, write it in one line, as with jq -c ."
    )
