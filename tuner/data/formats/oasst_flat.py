"""Files whose rows are single messages of trees (flat OpenAssistant): they become samples only together."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.data.conversation import LeftOut, RowError, Sample
from tuner.data.files.row_files import Unreadable
from tuner.data.formats import oasst, rows
from tuner.data.formats.checks import required, text_of
from tuner.data.formats.format import Options
from tuner.data.formats.rows import OTHER_SPLIT
from tuner.data.formats.shape import RowShape
from tuner.data.formats.unread_keys import is_prose

WINDOW = 10_000
"""rows that may lie between two messages of a tree: so many are held in memory at once"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """What became of some rows of a file together."""

    numbers: tuple[int, ...]
    """of the rows"""
    samples: tuple[Sample, ...] = ()
    left: Mapping[int, str] = field(default_factory=dict)
    """number of a row → why it is in no sample"""
    bad: frozenset[int] = frozenset()
    """which of those can't be read: the file is wrong there"""
    unread: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """what no format reads of them → in how many of the rows, and in how many it is more than a word"""


def is_flat(row: Any, shape: RowShape) -> bool:
    """Whether the rows of a file that begins with `row` become samples only together."""
    if shape.format not in ("auto", "chosen", "oasst"):
        return False
    return (
        oasst.is_message(rows.place_columns(shape)(row)) if isinstance(row, dict) else shape.format == "oasst"
    )


def group_rows(entries: Iterable[tuple[int, Any]], shape: RowShape) -> Iterator[RowGroup]:
    """The trees of a file, from the number and value of each row, in the order of their last messages; a row
    that is no message stands for itself.

    The messages of a tree may stand in any order, with no more than WINDOW rows of others in between; later
    ones are refused.
    """
    place_of, read_alone = rows.place_columns(shape), rows.row_reader(shape)
    options = Options(words=rows.role_words(oasst.ROLES, shape), paths=shape.paths)
    open_: dict[str, list[tuple[int, Any]]] = {}
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    last: dict[str, int] = {}
    closed: set[str] = set()

    def grown(tree: str) -> RowGroup:
        closed.add(tree)
        members = open_.pop(tree)
        found = oasst.read_flat_tree(members, options.words, options.paths)
        return RowGroup(
            numbers=tuple(number for number, _ in members),
            samples=found.conversations,
            left=found.left,
            bad=found.bad,
            unread=counts.pop(tree),
        )

    for place, (number, row) in enumerate(entries):
        while open_ and place - last[tree := next(iter(open_))] > WINDOW:
            yield grown(tree)
        try:
            if isinstance(row, Unreadable):
                raise RowError(row.reason)
            if rows.is_left_out(row, shape):
                raise LeftOut(OTHER_SPLIT)
            if not oasst.is_message(placed := place_of(row)):
                found = _counted({}, rows.unread_values(row, shape))
                yield RowGroup(numbers=(number,), samples=read_alone(row), unread=found)
                continue
            tree = text_of(required(placed, "message_tree_id"), "message_tree_id")
            if tree in closed:
                raise RowError(
                    f"its tree ended more than {WINDOW:,} rows before; sort the file by message_tree_id"
                )
        except RowError as error:
            yield RowGroup(numbers=(number,), left={number: str(error)}, bad=frozenset((number,)))
            continue
        except LeftOut as reason:
            yield RowGroup(numbers=(number,), left={number: str(reason)})
            continue
        # behind the others, as the one that was seen last; and only what is read of it
        open_[tree] = open_.pop(tree, [])
        open_[tree].append((number, {key: placed[key] for key in oasst.FORMAT.columns if key in placed}))
        _counted(
            counts.setdefault(tree, {}),
            {".".join(way): value for way, value in oasst.FORMAT.unread(placed, options)},
        )
        last[tree] = place
    yield from map(grown, list(open_))


def _counted(counts: dict[str, tuple[int, int]], found: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    for name, value in found.items():
        rows, texts = counts.get(name, (0, 0))
        counts[name] = rows + 1, texts + is_prose(value)
    return counts
