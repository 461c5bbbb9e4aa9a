"""A row of a data set → samples, in whatever format it is.

    a row → columns under the names of the format → which format? → its function → samples
            formats/columns                         formats/detect  formats/*

A file whose rows are single messages of trees (flat OpenAssistant) becomes samples only as a whole:
`tuner.data.formats.oasst_flat`.

How to add a format:

1. a module in `formats` with a pure function `name(row, …) -> Sample`; it takes what `checks` and `turns`
   check, raises RowError for what it can't take, and never leaves out a part of a row that says something
2. its line in `_readers`, its version 1 in VERSIONS, its columns in COLUMNS
3. its keys in `formats/detect`, behind those that say more; and what it reads of a row in
   `formats/unread_keys`, so that the rest is named
4. its word in `data.format` in the schema
5. a row of it in tests/data/formats/test_formats.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from tuner.data.conversation import RowError, Sample, Speaker
from tuner.data.formats import (
    alpaca,
    known_templates,
    messages,
    oasst,
    preference,
    pretrain,
    prompt,
    sharegpt,
    templated,
    text,
    unread_keys,
    xtuner,
)
from tuner.data.formats.checks import RoleWords, in_words
from tuner.data.formats.columns import column_mapper, mapped_places, partly_mapped, unmapped_parts
from tuner.data.formats.detect import recognise, recognise_by_name, sniff
from tuner.data.formats.facts import SourceFacts
from tuner.data.formats.split_column import is_other_split
from tuner.errors import ConfigError

__all__ = [
    "COLUMNS",
    "VERSIONS",
    "RowReader",
    "RowShape",
    "compares_answers",
    "format_versions",
    "is_left_out",
    "read_row",
    "row_reader",
    "sniff",
    "unread_places",
    "unread_values",
]

VERSIONS = {
    "messages": 5,
    "sharegpt": 5,
    "xtuner": 1,
    "alpaca": 4,
    "prompt": 3,
    "text": 1,
    "templated": 2,
    "guanaco": 2,
    "oasst": 2,
    "preference": 3,
    "label": 3,
    "chosen": 1,
}
"""each bumped when its function would read the same row differently"""

TURNS = ("system", "tools", "functions")
PREFERENCE = ("chosen", "rejected", "prompt", "messages", "conversations", "instruction", "input", *TURNS)
LABEL = (
    "label",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    *TURNS,
)
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", *TURNS),
    "sharegpt": ("conversations", *TURNS),
    "xtuner": ("conversation", *TURNS),
    "alpaca": ("instruction", "input", "output", "history", *TURNS),
    "prompt": ("prompt", "completion", *TURNS),
    "text": ("text",),
    "templated": ("text", *TURNS),
    "guanaco": ("text", "input", "output", *TURNS),
    "oasst": tuple(
        "prompt message_tree_id message_id parent_id role text rank deleted review_result tree_state".split()
    ),
    "preference": PREFERENCE,
    "label": LABEL,
    "chosen": tuple(dict.fromkeys((*PREFERENCE, *LABEL, "conversation", "text"))),
}
"""what each format reads of a row, and `data.columns` can say the place of"""

SPEAKERS: tuple[Speaker, ...] = ("system", "user", "assistant", "tool")

RowReader = Callable[[Any], tuple[Sample, ...]]
Roles = tuple[tuple[str, tuple[str, ...]], ...]
Chats = tuple[bool, bool]
"""whether texts, and questions, that a chat template wrote are read as conversations"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowShape:
    """How the rows of a source are read."""

    format: str = "auto"
    """a key of VERSIONS, or `auto`, which looks at each row; `chosen` does too, and takes the better
    answer where a row compares some
    """
    columns: Mapping[str, str] = field(default_factory=dict)
    """a format's column → where it is found (formats/columns)"""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """system, user, assistant or tool → more words for it"""
    paths: str = "best"
    """of trees: `best` or `all`"""
    split: str = "auto"
    """of rows that say in a column of which split they are: `auto` those for training, where there are
    others, `all`, or those of one
    """
    facts: SourceFacts = field(default_factory=SourceFacts)
    """what the whole source says of each row (tuner.data.survey.scan)"""

    @property
    def letters(self) -> bool:
        """Whether a file that holds no rows is to be read as a text, whatever it is called."""
        return self.format == "text" and not self.columns

    @property
    def whole(self) -> "RowShape":
        """The same for files of which all rows are wanted, whatever split they say they are of."""
        return replace(self, split="all", facts=replace(self.facts, split=None))


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
    return is_other_split(row, shape.facts.split, shape.split)


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
    readers, meant = _readers(roles, paths, verdict), _namer(format, columns, verdict, chats)
    if format not in ("auto", "chosen") and format not in readers:
        raise ConfigError(f"data.format={format} is not known; known are auto, {', '.join(VERSIONS)}.")

    def read_one(row: Any) -> tuple[Sample, ...]:
        name, placed = meant(row)
        return readers[name](placed)

    def read_chosen(row: Any) -> tuple[Sample, ...]:
        return tuple(better for sample in read_one(row) if (better := preference.better_answer(sample)))

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
    openai, share = _words(messages.ROLES, roles), _words(sharegpt.ROLES, roles)

    def find(row: Any) -> dict[str, Any]:
        name, placed = meant(row)
        found: dict[str, Any] = {}
        ways = partly_mapped(row, theirs) if theirs else {}
        if placed is not row and isinstance(row, dict):
            # what stood where another column was put
            gone = [
                key for key in row.keys() & placed.keys() if placed[key] is not row[key] and key not in taken
            ]
            found = {key: row[key] for key in gone if unread_keys.may_matter(key, row[key])}
        for way, value in unread_keys.find_unread(placed, name, openai, share, verdict):
            first = theirs.get(way[0]) or _called(way[0], row, placed)
            if first not in ways:
                found.setdefault(".".join((first, *way[1:])), value)
        for head, steps in ways.items():
            for way, value in unmapped_parts(row[head], (head,), steps):
                if unread_keys.may_matter(way[-1], value):
                    found.setdefault(".".join(way), value)
        return found

    return find


def _called(column: str, row: Any, placed: Any) -> str:
    """What a column is called in the file, where `placed` is the row with other names for some."""
    if placed is row or not isinstance(row, dict) or (column in row and row[column] is placed[column]):
        return column
    return next((key for key, value in row.items() if value is placed[column]), column)


def _readers(roles: Roles, paths: str, verdict: str | None = None) -> dict[str, RowReader]:
    openai, share, tree, marked = (
        _words(base, roles) for base in (messages.ROLES, sharegpt.ROLES, oasst.ROLES, known_templates.ROLES)
    )
    return {
        "messages": lambda row: pretrain.document_or_conversation(row, "messages", openai, messages.messages),
        "sharegpt": lambda row: pretrain.document_or_conversation(
            row, "conversations", share, sharegpt.sharegpt
        ),
        "xtuner": xtuner.xtuner,
        "alpaca": lambda row: (alpaca.alpaca(row),),
        "prompt": lambda row: (prompt.prompt(row, openai),),
        "text": text.plain,
        "templated": lambda row: (templated.templated(row, marked),),
        "continued": lambda row: (templated.continued(row, marked),),
        "guanaco": lambda row: (text.guanaco(row),),
        "oasst": lambda row: oasst.read_tree(row, tree, paths),
        "preference": lambda row: (preference.preference(row, share),),
        "label": lambda row: (preference.label(row, share, verdict),),
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


def format_versions(format: str) -> dict[str, int]:
    """The versions that reading as `format` depends on; `auto` and `chosen` may meet them all."""
    return {
        f"format.{known}": version
        for known, version in VERSIONS.items()
        if format in (known, "auto", "chosen")
    }
