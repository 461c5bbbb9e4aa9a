"""Rows → documents: what is read, written as tokens, cut to length, and accounted for. Pure: the same rows
give the same documents in any process.

a chunk of rows → samples (rows) → conversations as they are to be shown (conversation) → ids and mask (chat)
→ documents of at most `length` tokens
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from tuner.data.chat.encode import Encoded
from tuner.data.chat.template import Template, compile_template
from tuner.data.conversation import (
    Conversation,
    Label,
    Preference,
    RowError,
    Sample,
    Text,
    every_turn,
    exchanges,
    fill,
    last_only,
    split_reasoning,
    with_system,
    without_reasoning,
)
from tuner.data.formats import rows
from tuner.data.formats.nulls import Nulls, stripped
from tuner.data.tokenize.cuts import Cut, cuts_calls
from tuner.data.tokenize.job import (
    NO_ANSWER,
    OUT_OF_REACH,
    TOO_LONG,
    Job,
    SourceSettings,
    TokenizedRows,
    TokenizeSettings,
)
from tuner.data.tokenize.samples import Unit, read_samples
from tuner.data.tokenizer.load import load_vocabulary

VERSION = 3
"""bumped when the same rows and settings would give other documents"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Tokens of one row, or of a part of it."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    cut: str = ""
    """`truncated` or `split`, where it is not the whole"""


class DocumentMaker:
    """The settings, compiled: one for each process."""

    def __init__(self, settings: TokenizeSettings) -> None:
        self.settings = settings
        self.template: Template = compile_template(settings.chat, load_vocabulary(settings.model))
        self._readers = [rows.row_reader(source.shape) for source in settings.sources]

    def make(self, job: Job) -> TokenizedRows:
        """The documents of a job's rows."""
        made = TokenizedRows()
        source = self.settings.sources[job.source]
        units: list[Unit] = []
        for unit, samples in read_samples(job, source, self._readers[job.source], made):
            try:
                for sample in samples:
                    unit.parts += (
                        [sample] if isinstance(sample, Text) else self.shown(sample, source, made.nulls)
                    )
            except RowError as error:
                made.bad += [(line, str(error)) for line in unit.lines]
                continue
            if unit.parts:
                units.append(unit)
            else:
                made.drop(NO_ANSWER, unit.lines)
        if not job.check:
            self._write(made, units)
        return made

    def shown(self, sample: Sample, source: SourceSettings, nulls: Nulls) -> Iterator[Conversation]:
        """A conversation as the template gets it: those to train on; what a columnar schema filled in is
        counted in `nulls`. Raises RowError.
        """
        if isinstance(sample, Preference | Label):
            raise RowError(
                "the row compares answers (chosen and rejected, or a verdict), which this objective can't "
                "train on; data.format=chosen trains on the better one"
            )
        assert isinstance(sample, Conversation)
        mode = self.settings.reasoning
        sample = stripped(sample, source.shape.facts.filler, nulls)
        conversation = with_system(fill(sample, source.fill), source.system)
        if mode == "strip":
            conversation = without_reasoning(conversation)
        elif self.template.reasons:
            conversation = split_reasoning(conversation)
        if not conversation.trains:
            return
        if self.settings.loss == "last":
            yield last_only(conversation)
        elif mode == "every_turn":
            yield from every_turn(conversation)
        else:
            yield conversation

    def encode(self, conversations: Sequence[Conversation]) -> Encoded:
        """The whole of each conversation, as long as it is."""
        batch = self.template.encode(conversations, keep_reasoning=self.settings.reasoning == "keep")
        return replace(batch, trained=_all_but_first(batch)) if self.settings.loss == "all" else batch

    def _write(self, made: TokenizedRows, units: Sequence[Unit]) -> None:
        spoken = self.encode(
            [part for unit in units for part in unit.parts if isinstance(part, Conversation)]
        )
        plain = self.template.texts(
            [part.text for unit in units for part in unit.parts if isinstance(part, Text)]
        )
        conversations, texts = count(), count()
        kept: list[tuple[Unit, int, Document]] = []
        for unit in units:
            where = [
                (plain, next(texts), None) if isinstance(part, Text) else (spoken, next(conversations), part)
                for part in unit.parts
            ]
            if problem := next((batch.problems[i] for batch, i, _ in where if i in batch.problems), None):
                made.unwritten += [(line, problem) for line in unit.lines]
                continue
            documents = [
                (n, document)
                for n, (batch, i, part) in enumerate(where)
                for document in self.fit(batch, i, part)
            ]
            fit = [(n, document) for n, document in documents if document.trained.any()]
            if cut := self._cut(unit, where, documents):
                made.overlong.append(cut)
            if not fit:
                made.drop(OUT_OF_REACH if documents else TOO_LONG, unit.lines)
                continue
            made.kept += len(unit.lines)
            made.truncated += any(document.cut == "truncated" for _, document in fit)
            made.split += any(document.cut == "split" for _, document in fit)
            kept += [(unit, n, document) for n, document in fit]
        if kept:
            made.places = np.array([unit.place for unit, _, _ in kept], dtype=np.int64)
            made.lines = np.array([unit.lines[0] for unit, _, _ in kept], dtype=np.int32)
            made.parts = np.array([n for _, n, _ in kept], dtype=np.int32)
            made.weights = np.array([len(unit.lines) for unit, _, _ in kept], dtype=np.int32)
            made.lengths = np.array([len(document.ids) for _, _, document in kept], dtype=np.int32)
            made.ids = np.concatenate([document.ids for _, _, document in kept])
            made.trained = np.concatenate([document.trained for _, _, document in kept])
            made.hashes = np.array([_hash(document.ids) for _, _, document in kept], dtype=np.uint64)

    def _cut(
        self,
        unit: Unit,
        where: Sequence[tuple[Encoded, int, Conversation | None]],
        documents: Sequence[tuple[int, Document]],
    ) -> Cut | None:
        """What data.length leaves out of a row that was made into these documents; None where that is
        nothing.
        """
        wholes, calls = [], False
        for n, (batch, i, part) in enumerate(where):
            whole = int(batch.offsets[i + 1] - batch.offsets[i])
            parts = [document for m, document in documents if m == n]
            if whole <= self.settings.length or any(document.cut == "split" for document in parts):
                continue
            wholes.append(whole)
            calls |= cuts_calls(
                part, batch.ends[i], sum(len(document.ids) for document in parts if document.trained.any())
            )
        return Cut(whole=max(wholes), calls=calls, rows=len(unit.lines)) if wholes else None

    def fit(self, batch: Encoded, index: int, conversation: Conversation | None) -> Iterator[Document]:
        """A document of a batch in at most `length` tokens; none where it is dropped. `conversation` is
        None for a plain text.
        """
        start, end, length = int(batch.offsets[index]), int(batch.offsets[index + 1]), self.settings.length
        ids, trained = batch.ids[start:end], batch.trained[start:end]
        if end - start <= length:
            yield Document(ids=ids, trained=trained)
            return
        rule = self.settings.overlong
        if rule == "auto":
            rule = "truncate" if conversation else "split"
        if rule == "truncate":
            whole = [at for at in batch.ends[index] if at <= length and trained[:at].any()]
            at = max(whole, default=length)
            yield Document(ids=ids[:at], trained=trained[:at], cut="truncated")
        elif rule == "split" and conversation and len(groups := list(self._groups(conversation))) > 1:
            parts = self.encode(groups)
            for i in range(len(groups)):
                piece = slice(int(parts.offsets[i]), int(parts.offsets[i + 1]))
                yield from windows(parts.ids[piece], parts.trained[piece], length)
        elif rule == "split":
            yield from windows(ids, trained, length)

    def _groups(self, conversation: Conversation) -> Iterator[Conversation]:
        """Exchanges in groups that fit into a pack together, as far as their lengths alone say so; each
        with the system turn in front.
        """
        systems = tuple(message for message in conversation.messages[:1] if message.role == "system")
        groups = list(exchanges(conversation.messages[len(systems) :]))
        alone = self.encode([replace(conversation, messages=(*systems, *group)) for group in groups])
        open_, room = list(systems), self.settings.length
        for group, size in zip(groups, np.diff(alone.offsets).tolist(), strict=True):
            if size > room and len(open_) > len(systems):
                yield replace(conversation, messages=tuple(open_))
                open_, room = list(systems), self.settings.length
            open_ += group
            room -= size
        yield replace(conversation, messages=tuple(open_))


def windows(ids: NDArray[np.int32], trained: NDArray[np.bool_], length: int) -> Iterator[Document]:
    """Tokens in pieces of `length`, the last one shorter; the first token of each has nothing before it,
    and is not trained.
    """
    for at in range(0, len(ids), length):
        piece = trained[at : at + length].copy()
        piece[0] = False
        yield Document(ids=ids[at : at + length], trained=piece, cut="split")


def _hash(ids: NDArray[np.int32]) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def _all_but_first(batch: Encoded) -> NDArray[np.bool_]:
    trained = np.ones(len(batch.ids), dtype=np.bool_)
    trained[batch.offsets[:-1][np.diff(batch.offsets) > 0]] = False
    return trained
