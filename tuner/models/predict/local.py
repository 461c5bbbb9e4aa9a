"""Requests → answers, by a model that is loaded here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tuner.models.generate import context_of
from tuner.models.predict.batch import Answer, Batcher, Prompt, plan_batches
from tuner.models.predict.journal import Journal
from tuner.models.predict.requests import Request

TOGETHER = {"cpu": 32, "cuda": 128}
"""prompts that are answered together, by device, at most"""
SHARE = 0.5
"""of a GPU's free memory that keys and values of a batch may take"""
CPU_CACHE = 2 << 30
"""bytes that they may take in a machine's memory"""
TOKENS = 1 << 16
"""tokens that are read at once: their activations take memory too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How answers are drawn."""

    stops: frozenset[int]
    temperature: float
    top_p: float
    most: int
    """the longest answer, in tokens"""
    seed: int
    """of all draws; each row has its own from it"""
    logprobs: bool


class Bar(Protocol):
    """What hears how far it is."""

    def __call__(self, *, rows: int = 0, tokens: int = 0) -> None: ...


class LocalModel:
    """A model that answers requests, batch by batch."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, decoding: Decoding, context: int | None
    ) -> None:
        self._tokenizer, self._decoding = tokenizer, decoding
        self._batcher = Batcher(
            model,
            stops=decoding.stops,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            logprobs=decoding.logprobs,
        )
        self.context = context_of(model, context)
        """the longest sequence, in tokens"""
        self._device, self._per_token = model.device, cache_bytes(model)

    def room(self, request: Request) -> int:
        """The longest answer to a request, in tokens."""
        free = self._decoding.most if self.context is None else self.context - len(request.ids)
        return min(self._decoding.most, free)

    def too_long(self, request: Request) -> str | None:
        """Why a request can't be answered; None where it can."""
        if self.room(request) > 0:
            return None
        return f"the prompt has {len(request.ids)} tokens, and the model's context is {self.context}"

    def batching(self, together: int | None) -> list[int]:
        """How many prompts, and how many tokens with answers, go into a batch; of prompts `together`, where
        it is given.
        """
        if self._batcher.alone:
            return [1, TOKENS]
        memory = (
            int(SHARE * torch.cuda.mem_get_info(self._device)[0])
            if self._device.type == "cuda"
            else CPU_CACHE
        )
        return [together or TOGETHER[self._device.type], min(TOKENS, memory // max(self._per_token, 1))]

    def answer_all(
        self, model: str, requests: Mapping[int, Request], journal: Journal, bar: Bar, together: int | None
    ) -> None:
        """Answer the requests that the journal does not hold yet, and enter them as `model`'s; `together` as
        `batching` has it.
        """
        known = journal.answers.get(model, {})
        if long := {
            row: {"reason": why}
            for row, request in requests.items()
            if row not in known and (why := self.too_long(request))
        }:
            journal.add(model, long)
            bar(rows=len(long))
        rows = sorted(row for row, request in requests.items() if self.room(request) > 0)
        together, tokens = journal.choice("batches", lambda: self.batching(together))
        planned = plan_batches(
            [len(requests[row].ids) for row in rows],
            [self.room(requests[row]) for row in rows],
            together=together,
            tokens=tokens,
        )
        for batch in planned:
            known = journal.answers.get(model, {})
            for part in self._tried([rows[at] for at in batch if rows[at] not in known], requests, bar):
                journal.add(model, part)
                bar(rows=len(part))

    def _tried(
        self, rows: Sequence[int], requests: Mapping[int, Request], bar: Bar
    ) -> Iterator[dict[int, dict[str, Any]]]:
        """The answers to some rows, all together, or in halves where the GPU's memory is not enough."""
        if not rows:
            return
        try:
            answers = self._batcher.answer(
                [
                    Prompt(ids=requests[row].ids, most=self.room(requests[row]), seed=self._seed(row))
                    for row in rows
                ],
                lambda many: bar(tokens=many),
            )
        except torch.OutOfMemoryError:
            answers = None
        if answers is not None:
            yield {row: self._told(answer) for row, answer in zip(rows, answers, strict=True)}
            return
        torch.cuda.empty_cache()
        if len(rows) == 1:
            size = len(requests[rows[0]].ids)
            yield {rows[0]: {"reason": f"the GPU's memory is not enough for a prompt of {size} tokens"}}
            return
        half = len(rows) // 2
        yield from self._tried(rows[:half], requests, bar)
        yield from self._tried(rows[half:], requests, bar)

    def _seed(self, row: int) -> int:
        """A row's own, whoever is answered beside it."""
        digest = blake2b(f"{self._decoding.seed} {row}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _told(self, answer: Answer) -> dict[str, Any]:
        # An answer that is cut at its longest may end inside a character, which then decodes to U+FFFD.
        text = self._tokenizer.decode(answer.ids, skip_special_tokens=True)
        cut = text.rstrip("\ufffd") if answer.ended == "length" else text
        told = {"text": cut, "ended": answer.ended, "tokens": len(answer.ids)}
        return told | ({"logprobs": answer.logprobs} if self._decoding.logprobs else {})


def cache_bytes(model: PreTrainedModel) -> int:
    """What keys and values of one token take, at most: as if every layer kept them."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers: int = config.num_hidden_layers
    return int(2 * layers * heads * width * model.dtype.itemsize)
