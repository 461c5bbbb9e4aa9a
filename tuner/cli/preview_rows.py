"""Rows as the model will see them, and what of them is trained. Nothing is tokenized for good, and
nothing is trained.

    the requested rows → DocumentMaker, as in the tokenize stage → documents, and why a row gives none →
    text in colours, or JSON

What depends on all rows together is not looked at: duplicates, and the held-out share.
"""

import copy
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tuner.data.files.row_files import Chunk, Unreadable, parse_rows
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize import dataset
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.job import NOT_DRAWN, OUT_OF_REACH, TOO_LONG, Job, TokenizedRows, TokenizeSettings
from tuner.data.tokenize.ledger import FileCounts, most_texts_first, null_lines, unread_lines
from tuner.errors import ConfigError
from tuner.report.preview_text import PreviewedDocument, as_json, as_text
from tuner.report.token_text import Decoder, is_coloured, painter

Document = tuple[list[int], list[bool]]
"""ids, and which of them are trained"""

FIRST = 3
"""rows of each source that are shown where none were named"""

ROW_RANGE = re.compile(r"(?:(?P<file>.+):)?(?P<first>[1-9]\d*)(?:-(?P<last>[1-9]\d*))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRange:
    """Rows named on the command line: `12`, `3-17`, `support.jsonl:12`."""

    word: str
    first: int
    last: int
    file: str | None
    """a file's name or path, or a source of a mixture; None for all"""

    def means(self, file: dataset.DataFile) -> bool:
        """Whether it is about this file."""
        return self.file is None or self.file in (file.name, file.label, file.path.name, str(file.path))

    def holds(self, number: int) -> bool:
        return self.first <= number <= self.last


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrTree:
    """A row, or a tree of rows."""

    numbers: tuple[int, ...]
    """of the rows"""
    cut: dataset.JobRows
    """what holds just those"""
    times: int
    """how often it is drawn"""

    @property
    def row(self) -> Any:
        """The row itself; None where it is a tree, or no value."""
        value = None if isinstance(self.cut, tuple) or not self.cut.values else self.cut.values[0]
        return None if isinstance(value, Unreadable) else value


def parse_row_ranges(words: Sequence[str]) -> list[RowRange]:
    """What the bare words of the command line name. Raises ConfigError."""
    found = []
    for word in words:
        match = ROW_RANGE.fullmatch(word)
        if not match or (last := int(match["last"] or match["first"])) < int(match["first"]):
            raise ConfigError(
                f"{word!r} is not a row. preview takes the number of a row (12), a range (3-17), either of "
                "them in one file or source (support.jsonl:12), and, like any run, recipes that end in .yaml "
                "and fields."
            )
        found.append(RowRange(word=word, first=int(match["first"]), last=last, file=match["file"]))
    return found


def preview(
    settings: TokenizeSettings,
    listed: Sequence[dataset.DataFile],
    requested: Sequence[RowRange],
    *,
    takes: Sequence[int | float | None],
    seed: int,
    skip: bool,
    flags: Collection[str],
) -> int:
    """Show the rows that are `requested`, or the first of each source; returns the exit code.

    settings, listed, takes, seed, skip  as `read_dataset` takes them
    flags                                --json, --ids, --all
    Raises ConfigError for a row that is not there.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for request in requested:
        if not any(request.means(file) for file in listed):
            raise ConfigError(
                f"{request.word}: no file or source of the data is called {request.file}. There are: "
                f"{', '.join(_called(listed))}."
            )
    settings = dataset.survey_sources(settings, listed)
    for line in dataset.source_notes(settings, listed):
        print(f"  {line}", file=sys.stderr)
    maker = DocumentMaker(settings)
    words = token_words(maker.template.tokenizer)
    drawn = dataset.draw_rows(settings, listed, takes, seed)
    coloured = "--json" not in flags and is_coloured()
    if "--json" not in flags:
        print(
            "green is trained" if coloured else "what stands between ⟦ and ⟧ is trained",
            file=sys.stderr,
            flush=True,
        )
    counted: dict[str, FileCounts] = {}
    for file, unit in _chosen(settings, listed, requested, drawn):
        made, looks = inspect_row(maker, file, unit, skip)
        shown = counted.setdefault(file.label, FileCounts(source=file.label, file=file.name))
        shown.rows += made.read
        shown.not_read(made.unread)
        shown.nulls.add(made.nulls)
        if "--json" in flags:
            for value in as_json(looks, words):
                print(json.dumps(value), flush=True)
        else:
            text = as_text(
                looks,
                words,
                painter(coloured),
                marks=not coloured,
                ids="--ids" in flags,
                whole="--all" in flags,
            )
            print(text, flush=True)
    for line in unread_lines(counted.values(), dataset.reading_hints(settings, listed)) + null_lines(
        counted.values()
    ):
        print(line, file=sys.stderr, flush=True)
    return 0


def token_words(tokenizer: Tokenizer) -> Decoder:
    """What a tokenizer's ids mean."""
    named = {
        id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
    }
    return Decoder(decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False), special=named)


def _called(listed: Sequence[dataset.DataFile]) -> list[str]:
    return list(dict.fromkeys(name for file in listed for name in (file.label, file.name) if name))


def _chosen(
    settings: TokenizeSettings,
    listed: Sequence[dataset.DataFile],
    requested: Sequence[RowRange],
    drawn: Sequence[NDArray[np.int64] | None],
) -> Iterator[tuple[dataset.DataFile, RowOrTree]]:
    found: set[RowRange] = set()
    shown: dict[tuple[int, bool], int] = {}
    for number, file in enumerate(listed):
        shape, times = settings.sources[file.source].shape, drawn[number]
        if requested:
            mine = [request for request in requested if request.means(file)]
            for unit in rows_of(file, shape, times, mine) if mine else ():
                hit = [request for request in mine if any(request.holds(number) for number in unit.numbers)]
                if hit:
                    found.update(hit)
                    yield file, unit
            continue
        source = (file.source, file.apart)
        for unit in rows_of(file, shape, times, ()) if shown.get(source, 0) < FIRST else ():
            if unit.times:
                yield file, unit
                shown[source] = shown.get(source, 0) + 1
                if shown[source] == FIRST:
                    break
    if lost := [request for request in requested if request not in found]:
        raise ConfigError(
            f"{', '.join(request.word for request in lost)}: the data has no such row. The first row is 1, "
            "and blank lines don't count."
        )


def rows_of(
    file: dataset.DataFile, shape: RowShape, times: NDArray[np.int64] | None, near: Sequence[RowRange]
) -> Iterator[RowOrTree]:
    """The rows of a file, or its trees; with `near`, pieces of it that hold none of those rows are passed
    over unread.
    """
    at = 0  # among the units of the file
    for cut in dataset.job_rows(file, shape):
        if isinstance(cut, tuple):
            for index, tree in enumerate(cut, at):
                yield RowOrTree(
                    numbers=tree.numbers, cut=(tree,), times=1 if times is None else int(times[index])
                )
        else:
            last = cut.first + (
                cut.lines.count(b"\n") if cut.lines is not None else len(cut.values or ()) - 1
            )
            if not near or any(request.first <= last and cut.first <= request.last for request in near):
                for index, (number, row) in enumerate(parse_rows(cut), at):
                    yield RowOrTree(
                        numbers=(number,),
                        cut=Chunk(first=number, values=[row]),
                        times=1 if times is None else int(times[index]),
                    )
            if near and all(request.last <= last for request in near):
                return
        at += dataset.count_units(cut) if times is not None else 0


def inspect_row(
    maker: DocumentMaker, file: dataset.DataFile, unit: RowOrTree, skip: bool
) -> tuple[TokenizedRows, list[PreviewedDocument]]:
    """What becomes of a row: its documents as the packs will hold them, and why it, or a part of it, is
    left out.
    """
    drawn = None if unit.times else np.zeros(1, dtype=np.bool_)
    made = maker.make(Job(source=file.source, rows=unit.cut, drawn=drawn, apart=file.apart))
    return made, list(_looks(maker, made, file, unit, skip))


def _looks(
    maker: DocumentMaker, made: TokenizedRows, file: dataset.DataFile, unit: RowOrTree, skip: bool
) -> Iterator[PreviewedDocument]:
    strange = [name for name, entry in most_texts_first(made.unread) if not entry.left]
    whole = _endless(maker).make(Job(source=file.source, rows=unit.cut, apart=file.apart))
    blank = PreviewedDocument(
        source=file.label,
        file=file.name,
        apart=file.apart,
        rows=len(unit.numbers),
        times=unit.times,
        row=unit.row,
        unread=strange,
    )
    wholes = dict(zip(whole.parts.tolist(), _documents(whole), strict=True))
    kept: dict[int, list[Document]] = {number: [] for number in sorted({*wholes, *made.parts.tolist()})}
    for number, document in zip(made.parts.tolist(), _documents(made), strict=True):
        kept[number].append(document)
    why, rule = (
        next((reason for reason in (NOT_DRAWN, TOO_LONG, OUT_OF_REACH) if reason in made.dropped), None),
        maker.settings.overlong,
    )
    lines = tuple(made.lines[:1].tolist() if why is None else made.dropped[why])
    for sample, (number, documents) in enumerate(kept.items(), start=1):
        ids, trained = wholes.get(number, ([], []))
        one = replace(blank, lines=lines, sample=sample, samples=len(kept), whole=ids)
        if not documents:
            short = TOO_LONG if rule in ("drop", "error") else OUT_OF_REACH
            yield replace(
                one,
                ids=ids,
                trained=trained,
                left_out=why or short,
                fails=why == TOO_LONG and rule == "error",
            )
        for part, (given, mask) in enumerate(documents, start=1):
            cut = bool(made.truncated) and len(given) < len(ids)
            yield replace(one, ids=given, trained=mask, part=part, parts=len(documents), truncated=cut)
    for line, problem in made.bad + made.unwritten:
        yield replace(blank, lines=(line,), left_out=f"{dataset.BAD}: {problem}", fails=not skip)
    for reason, some in made.dropped.items():
        if reason != why or not kept:
            yield replace(blank, lines=tuple(some), left_out=reason)


def _endless(maker: DocumentMaker) -> DocumentMaker:
    """One that cuts nothing."""
    other = copy.copy(maker)
    other.settings = replace(maker.settings, length=sys.maxsize)
    return other


def _documents(made: TokenizedRows) -> list[Document]:
    ids, trained, ends = made.ids.tolist(), made.trained.tolist(), np.cumsum(made.lengths).tolist()
    return [(ids[start:end], trained[start:end]) for start, end in pairwise([0, *ends])]
