"""What a look at the first rows does not show: later ones at which a run would end."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuner.data.files.data_paths import said_once
from tuner.data.tokenize.data_file import DataFile, count_units, job_rows
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.job import Job
from tuner.data.tokenize.refused import RefusedRows

PATIENCE = 5.0
"""seconds of reading on"""
WHOLE = 4 << 20
"""bytes of data up to which rows are tokenized too; of more they are only read"""
NAMED = 3
"""failing rows that are named"""


def later_failures(
    maker: DocumentMaker,
    listed: Sequence[DataFile],
    drawn: Sequence[NDArray[np.int64] | None],
    *,
    skip: bool,
) -> list[str]:
    """Lines on the rows that can't be used, as far as they are found in some seconds; none where there are
    none.
    """
    until, bad, read = time.monotonic() + PATIENCE, RefusedRows(), 0
    whole = sum(file.path.stat().st_size for file in listed) <= WHOLE
    for number, file in enumerate(listed):
        at, times = 0, drawn[number]
        for cut in job_rows(file, maker.settings.sources[file.source].shape):
            if time.monotonic() > until:
                return _told(bad, f"of the first {read:,} rows", skip)
            many = count_units(cut)
            wanted = None if times is None else times[at : at + many] > 0
            at += many
            made = maker.make(
                Job(source=file.source, rows=cut, drawn=wanted, apart=file.apart, check=not whole)
            )
            bad.add(file.path, sorted(made.bad + made.unwritten))
            read += made.read
    return _told(bad, f"of {read:,} rows", skip)


def _told(bad: RefusedRows, of: str, skip: bool) -> list[str]:
    if not bad.count:
        return []
    end = (
        "are left out, as data.bad_rows=skip says"
        if skip
        else "can't be used, and a run ends there; data.bad_rows=skip leaves them out and counts them"
    )
    more = f"  and {bad.count - NAMED:,} more"
    return [
        f"{bad.count:,} {of} {end}:",
        *(f"  {line}" for line in said_once(bad.first[:NAMED])),
        *([more] if bad.count > NAMED else []),
    ]
