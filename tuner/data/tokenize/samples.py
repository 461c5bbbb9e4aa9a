"""A job's rows → samples: which are wanted, which can be read, and what is not read of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.data.conversation import Conversation, DocumentRole, LeftOut, RowError, Sample, Text
from tuner.data.files.row_files import Unreadable, parse_rows
from tuner.data.formats import rows
from tuner.data.formats.rows import OTHER_SPLIT
from tuner.data.formats.unread_keys import is_prose
from tuner.data.tokenize.job import NOT_DRAWN, Job, SourceSettings, TokenizedRows, Unread


@dataclass(frozen=True, slots=True)
class Part:
    """What a document is made of."""

    content: Conversation | Text
    role: DocumentRole = DocumentRole.NONE


@dataclass(kw_only=True, slots=True)
class Unit:
    """A row, or the rows of a tree, on its way."""

    place: int
    lines: list[int]
    parts: list[Part] = field(default_factory=list)

    @property
    def is_pair(self) -> bool:
        """Whether its documents are two sides of a comparison, which are worth nothing alone."""
        return any(part.role is DocumentRole.REJECTED for part in self.parts)


def read_samples(
    job: Job, source: SourceSettings, reader: rows.RowReader, made: TokenizedRows
) -> Iterator[tuple[Unit, Sequence[Sample]]]:
    """The rows of a job that are wanted and can be read, with their samples; the others are counted in
    `made`.
    """
    if isinstance(job.rows, tuple):
        for place, tree in enumerate(job.rows):
            made.read += len(tree.numbers)
            if job.drawn is not None and not job.drawn[place]:
                made.drop(NOT_DRAWN, tree.numbers)
                continue
            for line, reason in tree.left.items():
                if line in tree.bad:
                    made.bad.append((line, reason))
                else:
                    made.drop(reason, [line])
            for name, (count, texts) in tree.unread.items():
                entry = made.unread.setdefault(name, Unread(left=source.is_left(name)))
                entry.add(count, texts)
            lines = [line for line in tree.numbers if line not in tree.left]
            if (
                lines
                and source.strict
                and (strange := [name for name in tree.unread if not made.unread[name].left])
            ):
                made.bad += [(line, _strange(strange)) for line in lines]
            elif lines:
                yield Unit(place=place, lines=lines), tree.samples
        return
    for place, (line, row) in enumerate(parse_rows(job.rows)):
        made.read += 1
        if job.drawn is not None and not job.drawn[place]:
            made.drop(NOT_DRAWN, [line])
        elif isinstance(row, Unreadable):
            made.bad.append((line, row.reason))
        elif not job.apart and rows.is_left_out(row, source.shape):
            made.drop(OTHER_SPLIT, [line])
        else:
            try:
                samples = reader(row)
                _count_unread(row, source, made)
            except RowError as error:
                made.bad.append((line, str(error)))
            except LeftOut as reason:
                made.drop(str(reason), [line])
            else:
                yield Unit(place=place, lines=[line]), samples


def _count_unread(row: Any, source: SourceSettings, made: TokenizedRows) -> None:
    """Count what is not read of a row. Raises RowError where that is asked for."""
    if not (found := rows.unread_values(row, source.shape)):
        return
    if source.strict and (strange := [name for name in found if not source.is_left(name)]):
        raise RowError(_strange(strange))
    for name, value in found.items():
        if (entry := made.unread.get(name)) is None:
            entry = made.unread[name] = Unread(left=source.is_left(name))
        texts = is_prose(value)
        entry.add(1, texts, row if texts and not entry.left else None)


def _strange(names: Sequence[str]) -> str:
    found = ", ".join(names)
    return (
        f"no format reads {found}, and data.unread=error refuses that; to leave it: "
        f"data.leave=[{','.join(names)}], and to use it: data.columns"
    )
