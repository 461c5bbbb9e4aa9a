"""The contract of an attention backend, and what a model may ask of one beyond softmax(q k') v.

To add one, write a module beside this one that ends in `BACKEND = Backend(…)`, enter it in the tuple of
`tuner.kernels.attention`, and its name among the words of `machine.attention`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How the scores of one layer are made, and what becomes of them."""

    scaling: float
    """of q k'"""
    window: int | None = None
    """a query attends to at most so many keys, its own being the last"""
    softcap: float | None = None
    """c in c tanh(score / c): Gemma 2's bound of the scores (arXiv:2408.00118, section 2)"""
    sinks: Tensor | None = None
    """[H]: a learned logit for each head that takes a share of the softmax and has no value (gpt-oss)"""
    dropout: float = 0.0
    """the share of the attention weights that is dropped"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionNeeds:
    """What a backend must support to be used for a model here. All of them support sliding windows and
    grouped-query attention.
    """

    device: torch.device
    dtype: torch.dtype
    """of queries, keys and values"""
    head_dim: int
    """the widest of all layers"""
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute attention within documents."""

    name: str
    """its word for machine.attention"""
    words: str
    """what it is, for people"""
    attend: Callable[[Tensor, Tensor, Tensor, Any, Scoring], Tensor]
    """q [1, H, N, D], k [1, K, N, D], v [1, K, N, E], the row's Documents, the scoring → [1, N, H, E]"""
    trouble: Callable[[AttentionNeeds], str | None]
    """why it can't be used for these needs, in words; None where it can. Asked once a run"""
    package: str = ""
    """the distribution that brings it, where PyTorch does not"""
    compiles: bool = False
    """whether a compiler can look through it, with no more of the documents than where they begin"""


def unsupported(needs: AttentionNeeds, *, softcap: bool = False, dropout: bool = False) -> str | None:
    """The first need that a backend does not meet, in words; `softcap` and `dropout` say whether it supports
    those.
    """
    if needs.softcap and not softcap:
        return "it can't cap the scores, as this model does"
    if needs.sinks:
        return "it has no attention sinks, as this model has"
    if needs.dropout and not dropout:
        return "it has no dropout, as this model's attention has"
    return None
