"""Rows → documents: what is read, written as tokens, cut to length, and accounted for. Pure: the same rows
give the same documents in any process.

a chunk of rows → samples (rows) → conversations as they are to be shown (conversation) → ids and mask (chat)
→ documents of at most `length` tokens
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
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
    compared,
    every_turn,
    fill,
    last_only,
    split_reasoning,
    with_system,
    without_reasoning,
)
from tuner.data.formats import rows
from tuner.data.formats.nulls import Nulls, stripped
from tuner.data.tokenize.cuts import Cut, cuts_calls
from tuner.data.tokenize.fit import Document, Whole, fit
from tuner.data.tokenize.job import (
    NO_ANSWER,
    OUT_OF_REACH,
    TOO_LONG,
    Job,
    SourceSettings,
    TokenizedRows,
    TokenizeSettings,
)
from tuner.data.tokenize.samples import Part, Unit, read_samples
from tuner.data.tokenizer.load import load_vocabulary
from tuner.hardware.limits import next_record, reading

VERSION = 3
"""bumped when the same rows and settings would give other documents"""


class DocumentMaker:
    """The settings, compiled: one for each process."""

    def __init__(self, settings: TokenizeSettings) -> None:
        self.settings = settings
        self.template: Template = compile_template(settings.chat, load_vocabulary(settings.model))
        self._readers = [rows.row_reader(source.shape) for source in settings.sources]

    def make(self, job: Job) -> TokenizedRows:
        """The documents of a job's rows."""
        with reading(job.called):
            return self._make(job)

    def _make(self, job: Job) -> TokenizedRows:
        made = TokenizedRows()
        source = self.settings.sources[job.source]
        units: list[Unit] = []
        for unit, samples in read_samples(job, source, self._readers[job.source], made):
            next_record()
            try:
                for sample in samples:
                    unit.parts += self.parts(sample, source, made.nulls)
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

    def parts(self, sample: Sample, source: SourceSettings, nulls: Nulls) -> list[Part]:
        """What a sample is trained as; nothing where nothing of it is trained. Raises RowError."""
        if isinstance(sample, Text):
            return [Part(sample)]
        if isinstance(sample, Preference | Label):
            return self._sides(sample, source, nulls)
        conversation = self.shown(sample, source, nulls)
        if not conversation.trains:
            return []
        if self.settings.reasoning == "every_turn" and self.settings.loss != "last":
            return [Part(turn) for turn in every_turn(conversation)]
        return [Part(self._with_loss(conversation))]

    def _sides(self, sample: Preference | Label, source: SourceSettings, nulls: Nulls) -> list[Part]:
        """The answers that a row compares, each with its role: all of them or none."""
        if not self.settings.compares:
            raise RowError(
                "the row compares answers (chosen and rejected, or a verdict), which this objective can't "
                "train on; data.format=chosen trains on the better one"
            )
        sides = [(self.shown(one, source, nulls), role) for role, one in compared(sample)]
        if not all(conversation.trains for conversation, _ in sides):
            return []
        return [Part(self._with_loss(conversation), role) for conversation, role in sides]

    def _with_loss(self, conversation: Conversation) -> Conversation:
        return last_only(conversation) if self.settings.loss == "last" else conversation

    def shown(self, conversation: Conversation, source: SourceSettings, nulls: Nulls) -> Conversation:
        """A conversation as the template gets it; what a columnar schema filled in is counted in `nulls`."""
        conversation = stripped(conversation, source.shape.facts.filler, nulls)
        conversation = with_system(fill(conversation, source.fill), source.system)
        if self.settings.reasoning == "strip":
            return without_reasoning(conversation)
        return split_reasoning(conversation) if self.template.reasons else conversation

    def encode(self, conversations: Sequence[Conversation]) -> Encoded:
        """The whole of each conversation, as long as it is."""
        batch = self.template.encode(conversations, keep_reasoning=self.settings.reasoning == "keep")
        return replace(batch, trained=_all_but_first(batch)) if self.settings.loss == "all" else batch

    def _write(self, made: TokenizedRows, units: Sequence[Unit]) -> None:
        contents = [part.content for unit in units for part in unit.parts]
        spoken = self.encode([content for content in contents if isinstance(content, Conversation)])
        plain = self.template.texts([content.text for content in contents if isinstance(content, Text)])
        conversations, texts = count(), count()
        kept: list[tuple[Unit, int, Document]] = []
        for unit in units:
            wholes = [
                Whole(part, plain, next(texts))
                if isinstance(part.content, Text)
                else Whole(part, spoken, next(conversations))
                for part in unit.parts
            ]
            if problem := next((whole.problem for whole in wholes if whole.problem), None):
                made.unwritten += [(line, problem) for line in unit.lines]
                continue
            limit = self._limit(unit, wholes)
            documents = [
                (n, document)
                for n, whole in enumerate(wholes)
                for document in fit(whole, limit, self.settings.overlong, self.encode)
            ]
            fitting = [(n, document) for n, document in documents if document.trained.any()]
            if unit.is_pair and len(fitting) < len(wholes):
                fitting = []
            if cut := _cut(unit, wholes, documents, limit):
                made.overlong.append(cut)
            if not fitting:
                made.drop(OUT_OF_REACH if documents else TOO_LONG, unit.lines)
                continue
            made.kept += len(unit.lines)
            made.truncated += any(document.cut == "truncated" for _, document in fitting)
            made.split += any(document.cut == "split" for _, document in fitting)
            kept += [(unit, n, document) for n, document in fitting]
        if kept:
            made.places = np.array([unit.place for unit, _, _ in kept], dtype=np.int64)
            made.lines = np.array([unit.lines[0] for unit, _, _ in kept], dtype=np.int32)
            made.parts = np.array([n for _, n, _ in kept], dtype=np.int32)
            made.weights = np.array([len(unit.lines) for unit, _, _ in kept], dtype=np.int32)
            made.roles = np.array([unit.parts[n].role for unit, n, _ in kept], dtype=np.int8)
            made.lengths = np.array([len(document.ids) for _, _, document in kept], dtype=np.int32)
            made.ids = np.concatenate([document.ids for _, _, document in kept])
            made.trained = np.concatenate([document.trained for _, _, document in kept])
            made.hashes = np.array([_hash(document.ids) for _, _, document in kept], dtype=np.uint64)

    def _limit(self, unit: Unit, wholes: Sequence[Whole]) -> int:
        """How long a document of a row may be. Two sides that are compared share a pack: where they don't fit
        as they are, each may take half of it.
        """
        length = self.settings.length
        return length // 2 if unit.is_pair and sum(whole.size for whole in wholes) > length else length


def _cut(
    unit: Unit, wholes: Sequence[Whole], documents: Sequence[tuple[int, Document]], limit: int
) -> Cut | None:
    """What the limit leaves out of a row that was made into these documents; None where that is nothing."""
    sizes, calls = [], False
    for n, whole in enumerate(wholes):
        parts = [document for m, document in documents if m == n]
        if whole.size <= limit or any(document.cut == "split" for document in parts):
            continue
        sizes.append(sum(side.size for side in wholes) if unit.is_pair else whole.size)
        calls |= cuts_calls(
            whole.conversation,
            whole.turn_ends,
            sum(len(document.ids) for document in parts if document.trained.any()),
        )
    return Cut(whole=max(sizes), calls=calls, rows=len(unit.lines)) if sizes else None


def _hash(ids: NDArray[np.int32]) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def _all_but_first(batch: Encoded) -> NDArray[np.bool_]:
    trained = np.ones(len(batch.ids), dtype=np.bool_)
    trained[batch.offsets[:-1][np.diff(batch.offsets) > 0]] = False
    return trained
