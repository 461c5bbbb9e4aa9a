"""A few real documents of the run's packs, and the logits that the model gives them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from tuner.data.packs import Pack, Packs
from tuner.train.batch import Batch, collate
from tuner.train.loss import logits_at

SAMPLED = 4
"""documents that are looked at"""
POSITIONS = 64
"""positions of a document whose logits are looked at"""


def sample_documents(packs: Sequence[Pack] | Packs, room: int) -> list[Pack]:
    """A few real documents, each a pack of its own, of `room` tokens together at most and no more than the
    longest of the packs they are from.
    """
    chosen: list[tuple[Pack, int]] = []
    for number in range(len(packs)):
        pack = packs[number]
        begins = np.concatenate([[0], np.cumsum(pack.lengths)])
        trained = [d for d in range(len(pack.lengths)) if pack.trained[begins[d] + 1 : begins[d + 1]].any()]
        chosen += [(pack, d) for d in trained[: SAMPLED - len(chosen)]]
        if len(chosen) == SAMPLED:
            break
    if not chosen:
        return []
    longest = min(room, max(len(pack.ids) for pack, _ in chosen)) // len(chosen)
    return [cut_document(pack, document, max(2, longest)) for pack, document in chosen]


def cut_document(pack: Pack, document: int, longest: int) -> Pack:
    """A document alone, cut to `longest` tokens around the first that is trained."""
    begin = int(pack.lengths[:document].sum())
    end = begin + int(pack.lengths[document])
    first = begin + 1 + int(np.flatnonzero(pack.trained[begin + 1 : end])[0])
    start = max(begin, min(first - longest // 2, end - longest))
    stop = min(end, start + longest)
    trained = pack.trained[start:stop].copy()
    trained[0] = False
    one = slice(document, document + 1)
    lengths = np.array([stop - start], dtype=np.int32)
    return Pack(
        ids=pack.ids[start:stop],
        trained=trained,
        lengths=lengths,
        files=pack.files[one],
        lines=pack.lines[one],
    )


def document_logits(model: Any, documents: Sequence[Pack], device: torch.device) -> Tensor:
    """The logits [K, V] at some positions of each document, evenly spaced up to its last."""
    batch = collate(documents)
    at, places = 0, []
    for document in documents:
        length = len(document.ids)
        places.append(at + np.unique(np.linspace(length - 1, 0, min(POSITIONS, length)).astype(np.int64)))
        at += length
    keep_K = torch.from_numpy(np.concatenate(places))
    asked: Batch = replace(batch, keep_M=keep_K, targets_M=keep_K)
    return logits_at(model, asked.to(device))


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Let the model attend as transformers writes it out, one matrix of scores a head, while entered: for
    rows of one document.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    usual = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(usual)
