"""Reading a whole data set: its files in order, through the worker processes, into documents and the
counts of the ledger.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuner.data.files.data_paths import file_names, no_answers
from tuner.data.formats import hints
from tuner.data.formats.oasst import CUT_OFF, NOT_BEST, UNANSWERED
from tuner.data.formats.rows import OTHER_SPLIT
from tuner.data.shares import as_fraction
from tuner.data.survey import templated_texts
from tuner.data.survey.scan import scan_source
from tuner.data.tokenize.cuts import Cuts
from tuner.data.tokenize.data_file import DataFile, count_units, draw_rows, job_rows
from tuner.data.tokenize.job import (
    NO_ANSWER,
    NOT_DRAWN,
    OUT_OF_REACH,
    TOO_LONG,
    Job,
    TokenizedRows,
    TokenizeSettings,
    Unread,
)
from tuner.data.tokenize.ledger import FileCounts, FindHint, drop_reasons, most_texts_first
from tuner.data.tokenize.refused import RefusedRows, advice
from tuner.data.tokenize.spool import Spool
from tuner.data.tokenize.workers import tokenize_jobs
from tuner.errors import DataError
from tuner.hardware.cpu import cores
from tuner.progress import progress_counter

WORTH = 4 << 20
"""bytes of data for which one more process is worth its start"""
BAD = "can't be used"
CHOSEN = (NOT_DRAWN, NOT_BEST, UNANSWERED, CUT_OFF, OTHER_SPLIT)
"""reasons that are no loss: a sample was wanted, or the best path of a tree, or the rows for training"""


def read_dataset(
    settings: TokenizeSettings,
    listed: Sequence[DataFile],
    documents: Spool,
    cuts_off: Cuts,
    *,
    takes: Sequence[int | float | None],
    seed: int,
    skip: bool,
    workers: int | Literal["auto"],
    say: Callable[[str], None],
) -> list[FileCounts]:
    """Read `listed` into `documents`, and what is longer than data.length into `cuts_off`; returns the counts
    of each file.

    takes    for each of the settings' sources, how many of its rows are drawn (by `seed`)
    skip     leave out rows that can't be used, and count them
    workers  processes
    Raises DataError for rows that can't be used, with their number and the first ten, and when nothing is
    left to train on.
    """
    sources = [FileCounts(source=file.label, file=file.name) for file in listed]
    drawn = draw_rows(settings, listed, takes, seed)
    size = sum(file.path.stat().st_size for file in listed)
    processes = max(1, min(cores(), size // WORTH)) if workers == "auto" else workers
    bad, long = RefusedRows(), RefusedRows()
    sent: deque[tuple[int, NDArray[np.int64] | None, int]] = deque()

    def jobs() -> Iterator[Job]:
        for number, file in enumerate(listed):
            at = 0
            for cut in job_rows(file, settings.sources[file.source].shape):
                whole, many = drawn[number], count_units(cut)
                times = None if whole is None else whole[at : at + many]
                at += many
                sent.append((number, times, many))
                yield Job(
                    source=file.source,
                    rows=cut,
                    file=str(file.path),
                    drawn=None if times is None else times > 0,
                    apart=file.apart,
                    check=bool(bad.count) and not skip,
                )

    first = 0
    with progress_counter("tokenize", "rows", say) as advance:
        for made in tokenize_jobs(settings, jobs(), processes):
            number, times, many = sent.popleft()
            cuts_off.add(made.overlong)
            _account(made, sources[number], listed[number].path, bad, long, settings, skip)
            if len(made.lengths) and not bad.count:
                repeats = None if times is None else times[made.places]
                documents.add(made, file=number, first=first, repeats=repeats)
            first += many
            advance(made.read)
    documents.done()
    bad.refuse(BAD, advice(bad, listed, settings) if bad.count else "")
    are = "is" if long.count == 1 else "are"
    long.refuse(
        f"{are} longer than data.length={settings.length} tokens, and data.overlong=error refuses that",
        "Raise data.length, or use data.overlong=truncate, split or drop.",
    )
    if not len(documents):
        raise nothing_left(listed, sources)
    return sources


def _account(
    made: TokenizedRows,
    source: FileCounts,
    path: Path,
    bad: RefusedRows,
    long: RefusedRows,
    settings: TokenizeSettings,
    skip: bool,
) -> None:
    # Once a row was refused the later jobs are only looked through, and how many had been under way by then
    # may not show.
    unusable = sorted(made.bad + ([] if bad.count else made.unwritten))
    if skip:
        source.drop(BAD, [line for line, _ in unusable], [why for _, why in unusable])
    else:
        bad.add(path, unusable)
    for reason, lines in made.dropped.items():
        if reason == TOO_LONG and settings.overlong == "error":
            long.add(path, ((line, "") for line in lines))
        source.drop(reason, lines)
    source.rows += made.read
    source.kept += made.kept
    source.truncated += made.truncated
    source.split += made.split
    source.not_read(made.unread)
    source.nulls.add(made.nulls)


def survey_sources(settings: TokenizeSettings, listed: Sequence[DataFile]) -> TokenizeSettings:
    """The settings, with what each whole source says of its rows."""
    sources = list(settings.sources)
    for number in sorted({file.source for file in listed}):
        found = [(file.path, file.encoding) for file in listed if file.source == number]
        sources[number] = replace(sources[number], shape=scan_source(found, sources[number].shape))
    return replace(settings, sources=tuple(sources))


def reading_hints(settings: TokenizeSettings, listed: Sequence[DataFile]) -> FindHint:
    """The function that finds, by trying, what would read more of a source's rows."""
    numbers = {file.label: file.source for file in listed}

    def find(label: str, found: Mapping[str, Unread]) -> str | None:
        examples = [row for _, entry in most_texts_first(found) for row in entry.examples]
        return hints.how_to_read_more(
            examples, settings.sources[numbers[label]].shape, mixed=len(settings.sources) > 1
        )

    return find


def source_notes(settings: TokenizeSettings, listed: Sequence[DataFile]) -> list[str]:
    """What is to be said of each source as a whole."""
    labels = {file.source: file.label for file in reversed(listed)}
    said = [
        (labels.get(number, ""), line)
        for number, source in enumerate(settings.sources)
        for line in templated_texts.describe_templates(source.shape)
    ]
    return [f"{label}: {line}" if label else line for label, line in said]


def nothing_left(listed: Sequence[DataFile], sources: Sequence[FileCounts]) -> DataError:
    """The error for a data set in which nothing is trained."""
    read, why = (
        sum(source.rows for source in sources),
        {reason for source in sources for reason in source.dropped},
    )
    if not read or why == {NO_ANSWER}:
        return DataError(f"{file_names([file.path for file in listed])}: {no_answers(read)}")
    mend = "Raise data.length, or look at the rows" if why & {TOO_LONG, OUT_OF_REACH} else "Look at the rows"
    return DataError(
        f"all {read} rows were left out ({'; '.join(sorted(why))}). {mend}: the same words "
        "behind the verb preview show them."
    )


def drop_duplicates(documents: Spool, sources: Sequence[FileCounts], *, drop: bool) -> None:
    """Count the documents that hold the same tokens as one of another row before them; with `drop`, leave
    them out.
    """
    # the same answer chosen here and rejected there is no repetition
    keys = documents.hashes + documents.roles.astype(np.uint64)
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    again = documents.units[first][of] != documents.units
    if documents.roles.any():  # a side without the other is worth nothing
        again &= ~np.isin(documents.units, documents.units[~again])
    for file, many in enumerate(np.bincount(documents.files[again], minlength=len(sources)).tolist()):
        sources[file].duplicates = many
    if not drop or not again.any():
        return
    gone = np.setdiff1d(documents.units[again], documents.units[~again])
    at = np.unique(documents.units, return_index=True)[1]
    for i in at[np.isin(documents.units[at], gone)].tolist():
        source, weight = sources[documents.files[i]], int(documents.weights[i])
        source.kept -= weight
        source.drop("the same tokens as a row before", [int(documents.lines[i])] * weight)
    documents.keep(~again)


def count_tokens(documents: Spool, sources: Sequence[FileCounts]) -> None:
    """Enter what each file gave."""
    files, size = documents.files, len(sources)
    counts = (np.bincount(files, column, size) for column in (None, documents.lengths, documents.trained))
    for source, many, tokens, trained in zip(sources, *counts, strict=True):
        source.documents, source.tokens, source.trained_tokens = int(many), int(tokens), int(trained)


def refuse_dropped(sources: Sequence[FileCounts], most: int | float | None) -> None:
    """Raise DataError when more rows than `most`, a number or a share of what was read, are left out."""
    lost = sum(
        entry["rows"]
        for source in sources
        for reason, entry in source.dropped.items()
        if reason not in CHOSEN
    )
    read = sum(source.rows for source in sources)
    if most is not None and lost > (most if isinstance(most, int) else as_fraction(most) * read):
        told = "\n  ".join(drop_reasons(sources))
        raise DataError(
            f"{lost:,} of {read:,} rows are left out, more than data.max_dropped={most} allows:\n  {told}"
        )
