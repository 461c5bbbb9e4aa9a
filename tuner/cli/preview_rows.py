"""Rows as the model will see them, and what of them is trained. Nothing is tokenized for good, and
nothing is trained.

    the requested rows → DocumentMaker, as in the tokenize stage → documents, and why a row gives none →
    text in colours, or JSON

What depends on all rows together is not looked at: duplicates, and the held-out share.
"""

import copy
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tuner.cli.preview_failures import later_failures
from tuner.cli.row_ranges import RowOrTree, RowRange, rows_of
from tuner.data.tokenize import dataset
from tuner.data.tokenize.data_file import DataFile, draw_rows
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


def preview(
    settings: TokenizeSettings,
    listed: Sequence[DataFile],
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
    drawn = draw_rows(settings, listed, takes, seed)
    coloured = "--json" not in flags and is_coloured()
    if "--json" not in flags:
        print(
            "green is trained" if coloured else "what stands between ⟦ and ⟧ is trained",
            file=sys.stderr,
            flush=True,
        )
    counted: dict[str, FileCounts] = {}
    for file, unit in _chosen(settings, listed, requested, drawn):
        tokenized, previewed = inspect_row(maker, file, unit, skip)
        shown = counted.setdefault(file.label, FileCounts(source=file.label, file=file.name))
        shown.rows += tokenized.read
        shown.not_read(tokenized.unread)
        shown.nulls.add(tokenized.nulls)
        if "--json" in flags:
            for value in as_json(previewed, words):
                print(json.dumps(value), flush=True)
        else:
            text = as_text(
                previewed,
                words,
                painter(coloured),
                marks=not coloured,
                ids="--ids" in flags,
                whole="--all" in flags,
            )
            print(text, flush=True)
    for line in [
        *unread_lines(counted.values(), dataset.reading_hints(settings, listed)),
        *null_lines(counted.values()),
        *(() if requested else later_failures(maker, listed, drawn, skip=skip)),
    ]:
        print(line, file=sys.stderr, flush=True)
    return 0


def token_words(tokenizer: Tokenizer) -> Decoder:
    """What a tokenizer's ids mean."""
    named = {
        id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
    }
    return Decoder(decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False), special=named)


def _called(listed: Sequence[DataFile]) -> list[str]:
    return list(dict.fromkeys(name for file in listed for name in (file.label, file.name) if name))


def _chosen(
    settings: TokenizeSettings,
    listed: Sequence[DataFile],
    requested: Sequence[RowRange],
    drawn: Sequence[NDArray[np.int64] | None],
) -> Iterator[tuple[DataFile, RowOrTree]]:
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


def inspect_row(
    maker: DocumentMaker, file: DataFile, unit: RowOrTree, skip: bool
) -> tuple[TokenizedRows, list[PreviewedDocument]]:
    """What becomes of a row: its documents as the packs will hold them, and why it, or a part of it, is
    left out.
    """
    drawn = None if unit.times else np.zeros(1, dtype=np.bool_)
    tokenized = maker.make(Job(source=file.source, rows=unit.cut, drawn=drawn, apart=file.apart))
    return tokenized, list(_previewed_documents(maker, tokenized, file, unit, skip))


def _previewed_documents(
    maker: DocumentMaker, tokenized: TokenizedRows, file: DataFile, unit: RowOrTree, skip: bool
) -> Iterator[PreviewedDocument]:
    strange = [name for name, entry in most_texts_first(tokenized.unread) if not entry.left]
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
    kept: dict[int, list[Document]] = {number: [] for number in sorted({*wholes, *tokenized.parts.tolist()})}
    for number, document in zip(tokenized.parts.tolist(), _documents(tokenized), strict=True):
        kept[number].append(document)
    why, rule = (
        next((reason for reason in (NOT_DRAWN, TOO_LONG, OUT_OF_REACH) if reason in tokenized.dropped), None),
        maker.settings.overlong,
    )
    lines = tuple(tokenized.lines[:1].tolist() if why is None else tokenized.dropped[why])
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
            cut = bool(tokenized.truncated) and len(given) < len(ids)
            yield replace(one, ids=given, trained=mask, part=part, parts=len(documents), truncated=cut)
    for line, problem in tokenized.bad + tokenized.unwritten:
        yield replace(blank, lines=(line,), left_out=f"{dataset.BAD}: {problem}", fails=not skip)
    for reason, some in tokenized.dropped.items():
        if reason != why or not kept:
            yield replace(blank, lines=tuple(some), left_out=reason)


def _endless(maker: DocumentMaker) -> DocumentMaker:
    """One that cuts nothing."""
    other = copy.copy(maker)
    other.settings = replace(maker.settings, length=sys.maxsize)
    return other


def _documents(tokenized: TokenizedRows) -> list[Document]:
    ids, trained, ends = (
        tokenized.ids.tolist(),
        tokenized.trained.tolist(),
        np.cumsum(tokenized.lengths).tolist(),
    )
    return [(ids[start:end], trained[start:end]) for start, end in pairwise([0, *ends])]
