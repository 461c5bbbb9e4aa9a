"""The first row of a data set that can be trained on, or why there is none: looked for when the data is
fetched, before anything is tokenized.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tuner.data.conversation import Conversation, Label, LeftOut, Preference, RowError, Sample, Text
from tuner.data.files import data_paths
from tuner.data.files.row_files import Unreadable, chunks, parse_rows
from tuner.data.formats import hints, oasst_flat, rows
from tuner.data.formats.shape import RowShape
from tuner.errors import DataError

SHOWN = 3
"""bad rows that are named where there is no good one"""


def require_trainable_row(
    found: Sequence[Path], encoding: str, shape: RowShape, *, mixed: bool = False
) -> None:
    """Read files until a row can be trained on. Raises DataError when none can, with what would have them
    read, if that was found by trying.

    mixed   whether they are a source of a mixture, of which the command line says nothing
    """
    read, compared, bad, sample = 0, 0, list[tuple[str, str]](), list[Any]()
    for file in found:
        for count, samples, problems, row in _samples(file, encoding, shape):
            if any(map(has_trained_text, samples)):
                return
            read += count
            compared += any(isinstance(one, Preference | Label) for one in samples) or rows.compares_answers(
                row, shape
            )
            if len(sample) < hints.SAMPLE and row is not None:
                sample.append(row)
            if len(bad) < SHOWN:
                bad += [(f"{file}:{line}", reason) for line, reason in problems][: SHOWN - len(bad)]
    raise DataError(f"{data_paths.file_names(found)}: {_why_none(read, compared, bad, sample, shape, mixed)}")


def _why_none(
    read: int,
    compared: int,
    bad: Sequence[tuple[str, str]],
    sample: Sequence[Any],
    shape: RowShape,
    mixed: bool,
) -> str:
    """Why no row can be trained on, of so many that were read, so many of which compare answers; and what
    mends it.
    """
    many = f"{read:,} row{'s' if read > 1 else ''}"
    first = "\n  ".join(data_paths.said_once(bad))
    if compared:
        better = hints.how_to_train(sample, shape, mixed=mixed)
        return (
            f"found {many}{f', {compared:,} of them' if compared < read else ' of'} comparisons (chosen and "
            "rejected, or a verdict), which are for preference training, and that is not supported "
            "yet."
            + (f" {better}" if better else "")
            + (f"\nSome of them can't be read as comparisons either. The first:\n  {first}" if bad else "")
        )
    way = hints.how_to_read(sample, shape, mixed=mixed)
    if bad:
        mend = (
            way
            or "Mend the rows. data.format and data.columns say how to read others; docs/data.md has the "
            "forms that are known."
        )
        return f"none of {many} can be trained on. The first that can't be read:\n  {first}\n{mend}"
    return f"{data_paths.no_answers(read)}{f' {way}' if way else ''}"


def has_trained_text(sample: Sample) -> bool:
    """Whether there is something to train in it. What compares answers is for preference training."""
    return isinstance(sample, Text) or (isinstance(sample, Conversation) and sample.trains)


def _samples(
    file: Path, encoding: str, shape: RowShape
) -> Iterable[tuple[int, Sequence[Sample], Iterable[tuple[int, str]], Any]]:
    """(how many rows, their samples, those that can't be read and why, the row), a row or the rows of a
    tree at a time; of a tree no row.
    """
    entries: Iterator[tuple[int, Any]] = (
        entry for chunk in chunks(file, encoding, shape.letters) for entry in parse_rows(chunk)
    )
    head = list(islice(entries, 1))
    entries = chain(head, entries)
    if head and oasst_flat.is_flat(head[0][1], shape):
        for tree in oasst_flat.group_rows(entries, shape):
            yield (
                len(tree.numbers),
                tree.samples,
                [(number, why) for number, why in tree.left.items() if number in tree.bad],
                None,
            )
        return
    read = rows.row_reader(shape)
    for number, row in entries:
        try:
            if isinstance(row, Unreadable):
                raise RowError(row.reason)
            if rows.is_left_out(row, shape):
                continue
            samples = read(row)
        except RowError as error:
            yield 1, (), [(number, str(error))], None if isinstance(row, Unreadable) else row
        except LeftOut:
            yield 1, (), (), None
        else:
            yield 1, samples, (), row
