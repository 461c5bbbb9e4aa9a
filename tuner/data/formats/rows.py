"""A row of a data set → samples, in whatever format it is.

    a row → columns under the names of the format → which format? → its function → samples
            formats/columns                         formats/detect  formats/table

A file whose rows are single messages of trees (flat OpenAssistant) becomes samples only as a whole:
`tuner.data.formats.oasst_flat`.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from tuner.data.conversation import RowError, Sample, Speaker
from tuner.data.files.splits import names_split
from tuner.data.formats import known_templates, templated
from tuner.data.formats.checks import RoleWords, in_words
from tuner.data.formats.columns import column_mapper, mapped_places, partly_mapped, unmapped_parts
from tuner.data.formats.detect import recognise, recognise_by_name
from tuner.data.formats.format import Options
from tuner.data.formats.preference import better_answer
from tuner.data.formats.shape import RowShape
from tuner.data.formats.table import BY_NAME, FORMATS, VERSIONS
from tuner.data.formats.unread_keys import may_matter
from tuner.errors import ConfigError

OTHER_SPLIT = "of another split (data.split)"
"""why a row is left out"""
SPEAKERS: tuple[Speaker, ...] = ("system", "user", "assistant", "tool")

RowReader = Callable[[Any], tuple[Sample, ...]]
Roles = tuple[tuple[str, tuple[str, ...]], ...]
Chats = tuple[bool, bool]
"""whether texts, and questions, that a chat template wrote are read as conversations"""


def row_reader(shape: RowShape) -> RowReader:
    """The function that reads such rows: it gives a row's samples, mostly one, none where there is nothing
    to train on, or raises RowError.
    """
    return _reader(
        shape.format,
        tuple(shape.columns.items()),
        _frozen(shape.roles),
        shape.paths,
        shape.facts.verdict,
        _chats(shape),
    )


def unread_places(row: Any, shape: RowShape) -> tuple[str, ...]:
    """The places of a row that was read which hold something that its format does not read: `context`,
    `messages.thought`.
    """
    return tuple(unread_values(row, shape))


def unread_values(row: Any, shape: RowShape) -> dict[str, Any]:
    """The same, each with what it holds; of several such places in a row the first."""
    found = _remainder(
        shape.format, tuple(shape.columns.items()), _frozen(shape.roles), shape.facts.verdict, _chats(shape)
    )(row)
    return {name: value for name, value in found.items() if name != shape.facts.split}


def _chats(shape: RowShape) -> Chats:
    return shape.facts.chats, shape.facts.continues


def is_left_out(row: Any, shape: RowShape) -> bool:
    """Whether a row says that it is of another split than the one that is read."""
    column = shape.facts.split
    if column is None or not isinstance(row, dict):
        return False
    return not names_split(row.get(column), "train" if shape.split == "auto" else shape.split)


def read_row(row: Any, shape: RowShape) -> tuple[Sample, ...]:
    """The samples of one row. Raises RowError."""
    return row_reader(shape)(row)


@lru_cache(maxsize=256)
def _reader(
    format: str,
    columns: tuple[tuple[str, str], ...],
    roles: Roles,
    paths: str,
    verdict: str | None,
    chats: Chats,
) -> RowReader:
    options, meant = _options(roles, paths, verdict), _namer(format, columns, verdict, chats)
    if format not in ("auto", *VERSIONS):
        raise ConfigError(f"data.format={format} is not known; known are auto, {', '.join(VERSIONS)}.")

    readers = {format.name: format.read for format in FORMATS}

    def read_one(row: Any) -> tuple[Sample, ...]:
        name, placed = meant(row)
        return readers[name](placed, options[name])

    def read_chosen(row: Any) -> tuple[Sample, ...]:
        return tuple(better for sample in read_one(row) if (better := better_answer(sample)))

    return read_chosen if format == "chosen" else read_one


@lru_cache(maxsize=256)
def _namer(
    format: str, columns: tuple[tuple[str, str], ...], verdict: str | None, chats: Chats
) -> Callable[[Any], tuple[str, Any]]:
    """The function that says what a row is read as, and gives it with its columns in their places. It
    raises RowError.
    """
    get = column_mapper(dict(columns)) if columns else None

    def name_auto(row: Any) -> tuple[str, Any]:
        name, placed = recognise(row, verdict) if get is None else _meant(get(row), columns, verdict)
        texts, pairs = chats
        if (
            texts
            and name == "text"
            and (
                known_templates.begins_as_template(placed["text"])
                or known_templates.holds_mark(placed["text"])
            )
        ):
            name = "templated"
        elif pairs and templated.templated_pair(placed, name):
            name = "continued"
        return name, placed

    def name_known(row: Any) -> tuple[str, Any]:
        if get is not None:
            row = get(row)
        if not isinstance(row, dict):
            if not isinstance(row, list):
                raise RowError(f"a row must be an object, and this is {in_words(row)}")
            if format != "messages":
                raise RowError(f"a bare list of turns is of the format messages, and data.format is {format}")
        return format, row

    return name_auto if format in ("auto", "chosen") else name_known


@lru_cache(maxsize=256)
def _remainder(
    format: str, columns: tuple[tuple[str, str], ...], roles: Roles, verdict: str | None, chats: Chats
) -> Callable[[Any], dict[str, Any]]:
    meant, theirs = _namer(format, columns, verdict, chats), dict(columns)
    taken = mapped_places(theirs)
    options = _options(roles, "best", verdict)

    def find(row: Any) -> dict[str, Any]:
        name, placed = meant(row)
        found: dict[str, Any] = {}
        ways = partly_mapped(row, theirs) if theirs else {}
        if placed is not row and isinstance(row, dict):
            # what stood where another column was put
            gone = [
                key for key in row.keys() & placed.keys() if placed[key] is not row[key] and key not in taken
            ]
            found = {key: row[key] for key in gone if may_matter(key, row[key])}
        for way, value in BY_NAME[name].unread(placed, options[name]):
            first = theirs.get(way[0]) or _called(way[0], row, placed)
            if first not in ways:
                found.setdefault(".".join((first, *way[1:])), value)
        for head, steps in ways.items():
            for way, value in unmapped_parts(row[head], (head,), steps):
                if may_matter(way[-1], value):
                    found.setdefault(".".join(way), value)
        return found

    return find


def _called(column: str, row: Any, placed: Any) -> str:
    """What a column is called in the file, where `placed` is the row with other names for some."""
    if placed is row or not isinstance(row, dict) or (column in row and row[column] is placed[column]):
        return column
    return next((key for key, value in row.items() if value is placed[column]), column)


@lru_cache(maxsize=256)
def _options(roles: Roles, paths: str, verdict: str | None) -> dict[str, Options]:
    """For each format. Raises ConfigError for a role that there is not."""
    return {
        format.name: Options(words=_words(format.roles, roles), paths=paths, verdict=verdict)
        for format in FORMATS
    }


def role_words(base: RoleWords, shape: RowShape) -> RoleWords:
    """The words for roles: a format's own, and those of the shape. Raises ConfigError."""
    return _words(base, _frozen(shape.roles))


def _frozen(roles: Mapping[str, tuple[str, ...]]) -> Roles:
    return tuple((role, tuple(words)) for role, words in sorted(roles.items()))


def _words(base: RoleWords, roles: Roles) -> RoleWords:
    result = dict(base)
    for role, words in roles:
        if role not in SPEAKERS:
            raise ConfigError(
                f"data.roles.{role} is none of {', '.join(SPEAKERS)}, for which data.roles has other words."
            )
        result |= dict.fromkeys(words, role)
    return result


def _meant(
    row: Mapping[str, Any], columns: tuple[tuple[str, str], ...], verdict: str | None = None
) -> tuple[str, Any]:
    # The columns that were asked for say what the row is taken for, unless it says which of two answers is
    # the better one.
    try:
        found = recognise(row, verdict)
        if found[0] in ("preference", "label"):
            return found
    except RowError:
        found = None
    asked = {ours: row[ours] for ours, _ in columns}
    if meant := recognise_by_name(asked):
        format, placed = meant
        return format, row if placed is asked else {
            key: value for key, value in row.items() if key not in asked
        } | placed
    return found or recognise(row, verdict)


def compares_answers(row: Any, shape: RowShape) -> bool:
    """Whether the keys of a row say that it compares answers, however it can be read."""
    try:
        return recognise(place_columns(shape)(row), shape.facts.verdict)[0] in ("preference", "label")
    except RowError:
        return False


def place_columns(shape: RowShape) -> Callable[[Any], Any]:
    """The columns of a row under their names, where it has them."""
    if not shape.columns:
        return lambda row: row
    get = column_mapper(shape.columns)

    def place(row: Any) -> Any:
        try:
            return get(row)
        except RowError:
            return row

    return place
