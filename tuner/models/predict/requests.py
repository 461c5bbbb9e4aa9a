"""A file's rows → what a model is asked of each: the conversation up to its last answer, as the same token
ids that training read, and that answer.

Rows may come without one: an answer column that is absent or empty is nothing that a prompt needs. Where a
row ends in an assistant's turn, that turn is what was expected; of two answers that a row compares it is the
better one. A plain text is gone on with.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.data.conversation import (
    Conversation,
    Label,
    LeftOut,
    Message,
    Preference,
    RowError,
    Sample,
    Text,
    with_system,
)
from tuner.data.files.row_files import Unreadable, chunks, parse_rows
from tuner.data.formats import oasst_flat, rows
from tuner.data.formats.nulls import Nulls
from tuner.data.formats.shape import RowShape
from tuner.data.survey.scan import scan_source
from tuner.data.tokenize.data_file import DataFile
from tuner.data.tokenize.dataset import BAD
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.refused import RefusedRows, advice
from tuner.errors import ConfigError, DataError
from tuner.hardware.limits import next_record, reading

ANSWERS = ("output", "completion", "response", "answer", "target", "assistant", "bot")
"""columns that hold an answer in one format or another, and that a row to be answered may lack"""
SAMPLE = 100
"""rows that say how the others are read"""
NOTHING_ASKED = "the row asks nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked of a model, or why nothing is."""

    ids: Sequence[int] = ()
    """the prompt, up to where the assistant begins to write"""
    conversation: Conversation | None = None
    """the same as turns; None of a plain text"""
    expected: str | None = None
    """the answer that the row brings"""
    reason: str | None = None
    """why it gets no answer"""


@dataclass(kw_only=True, slots=True)
class Requests:
    """Those of a file, in the order of its rows."""

    every: list[Request] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    """all keys of its rows, in the order in which they come up"""


def file_rows(file: Path, encoding: str, shape: RowShape) -> Iterator[tuple[int, Any]]:
    """The rows of a file, each with its number in it; an Unreadable where one is."""
    for chunk in chunks(file, encoding, shape.letters):
        yield from parse_rows(chunk)


def choose_shape(
    file: Path, encoding: str, shape: RowShape, *, told: bool, say: Callable[[str], None]
) -> RowShape:
    """How the rows of a file are read: as `shape`, the run's own, says, or by their keys where more of the
    first ones can be read so.

    told   `shape` was asked for, so nothing else will do
    Raises DataError for a file that can't be read, and for one whose rows are messages of trees.
    """
    found = file_rows(file, encoding, shape)
    sample = list(islice((row for _, row in found if not isinstance(row, Unreadable)), SAMPLE))
    recognised = RowShape(split="all")
    if not told and sum(_reads(row, recognised) for row in sample) > sum(
        _reads(row, shape) for row in sample
    ):
        say("the rows are not like those of training, and are read by their own keys")
        shape = recognised
    first = sample[0] if sample else None
    if oasst_flat.is_flat(first, shape):
        raise DataError(
            f"{file}: its rows are single messages of trees, which become conversations only together. "
            "predict answers a file with a conversation in each row."
        )
    return scan_source([(file, encoding)], shape).whole


def _reads(row: Any, shape: RowShape) -> bool:
    try:
        samples_of(row, shape)
    except RowError:
        return False
    except LeftOut:
        return True
    return True


def samples_of(row: Any, shape: RowShape) -> tuple[Sample, ...]:
    """What a row holds, as training reads it, with an answer or without. Raises RowError, LeftOut."""
    read = rows.row_reader(shape)
    try:
        return read(row)
    except RowError:
        for key in _lacking(row, shape):
            try:
                return read({**row, key: ""})
            except RowError:
                continue
        raise


def _lacking(row: Any, shape: RowShape) -> Iterator[str]:
    """The columns of answers that a row does not fill."""
    if not isinstance(row, dict):
        return
    names = [shape.columns[name] for name in ANSWERS if name in shape.columns] + list(ANSWERS)
    yield from (name for name in dict.fromkeys(names) if row.get(name) is None)


def read_requests(
    file: DataFile, maker: DocumentMaker, *, system: str | None, skip: bool, tick: Callable[[int], object]
) -> Requests:
    """All of a file.

    system   for conversations that bring no system prompt, before the one of the training data
    skip     rows that can't be used get no answer, and the reason
    tick     hears of each row
    Raises DataError for rows that can't be used, with their places and what mends them.
    """
    source, bad, found = maker.settings.sources[file.source], RefusedRows(), Requests()
    with reading(str(file.path)):
        for line, row in file_rows(file.path, file.encoding, source.shape):
            next_record()
            tick(1)
            found.columns.update(dict.fromkeys(row if isinstance(row, dict) else ()))
            try:
                if isinstance(row, Unreadable):
                    raise RowError(row.reason)
                found.every.append(_request(samples_of(row, source.shape), maker, system))
            except LeftOut as reason:
                found.every.append(Request(reason=str(reason)))
            except RowError as error:
                bad.add(file.path, [(line, str(error))])
                found.every.append(Request(reason=str(error)))
    if bad.count and not skip:
        bad.refuse(BAD, advice(bad, [file], maker.settings))
    return found


def _request(samples: Sequence[Sample], maker: DocumentMaker, system: str | None) -> Request:
    """Raises RowError."""
    if not samples:
        return Request(reason=NOTHING_ASKED)
    if len(samples) > 1:
        raise RowError(f"the row holds {len(samples)} conversations, and one is answered")
    if isinstance(samples[0], Text):
        return Request(ids=array("i", maker.template.texts([samples[0].text]).ids[:-1].tolist()))
    asked, answer = cut_answer(samples[0])
    if not asked.messages:
        return Request(reason=NOTHING_ASKED)
    source = maker.settings.sources[0]
    shown = maker.shown(with_system(asked, system), source, Nulls())
    try:
        ids = array("i", maker.template.prompt(shown.messages, shown.tools))
    except ConfigError as error:
        raise RowError(str(error)) from None
    return Request(ids=ids, conversation=shown, expected=_text(shown, answer, maker))


def cut_answer(sample: Conversation | Preference | Label) -> tuple[Conversation, Message | None]:
    """A conversation up to its last answer, and that answer; None where it does not end in one, or in a bad
    one.
    """
    if isinstance(sample, Preference):
        whole = replace(sample.prompt, messages=(*sample.prompt.messages, *sample.chosen))
    else:
        whole = sample.conversation if isinstance(sample, Label) else sample
    *before, last = whole.messages
    if last.role != "assistant":
        return whole, None
    says = bool(last.content.strip() or last.calls) and (not isinstance(sample, Label) or sample.good)
    return replace(whole, messages=tuple(before)), last if says else None


def _text(asked: Conversation, answer: Message | None, maker: DocumentMaker) -> str | None:
    """An answer as the model would write it: with its thought and calls, without special tokens."""
    if answer is None or not (answer.calls or answer.reasoning or "</think>" in answer.content):
        return None if answer is None else answer.content
    said = replace(answer, trained=True)
    before = tuple(replace(message, trained=False) for message in asked.messages)
    source = maker.settings.sources[0]
    encoded = maker.encode([maker.shown(replace(asked, messages=(*before, said)), source, Nulls())])
    return maker.template.tokenizer.decode(encoded.ids[encoded.trained].tolist(), skip_special_tokens=True)
