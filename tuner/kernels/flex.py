"""Attention by PyTorch's FlexAttention (arXiv:2412.05496): a kernel compiled for the scores at hand, which
skips the blocks in which no document attends.

It supports soft caps, sinks and any head dimension. Its backward pass is for GPUs only, and the first call of
a kind compiles for some seconds.
"""

import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tuner.kernels.backend import AttentionNeeds, Backend, Scoring
from tuner.kernels.packed_documents import Documents, to_device

BLOCK = 128
"""tokens on each side of a block"""
VARIANTS = 64
"""kinds of calls, each with a kernel of its own, in one process at most"""


def trouble(needs: AttentionNeeds) -> str | None:
    """Why it can't be used here, if so."""
    if needs.device.type != "cuda":
        return "its backward pass runs on NVIDIA GPUs only"
    if needs.dropout:
        return "it has no dropout, as this model's attention has"
    if find_spec("triton") is None:
        return "it is compiled by Triton, which is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "it is compiled with the help of a C compiler, and there is none on the PATH"
    capability = torch.cuda.get_device_capability(needs.device)
    if capability < (8, 0):
        return (
            "it needs an Ampere GPU (compute capability 8.0) or a later one, and this is "
            f"{capability[0]}.{capability[1]}"
        )
    return None


def attend(q_1HND: Tensor, k_1KND: Tensor, v_1KNE: Tensor, documents: Documents, scoring: Scoring) -> Tensor:
    """softmax(c tanh(q k' scaling / c)) v within each document; returns [1, N, H, E].

    A sink s takes its share of the softmax afterwards: with l the logarithm of the sum of exp(score), the
    output times exp(l) / (exp(l) + exp(s)) = sigmoid(l - s).
    """
    group = q_1HND.shape[1] // k_1KND.shape[1]
    if group & (group - 1):  # some of its kernels take groups of a power of two only
        k_1KND, v_1KNE = (x.repeat_interleave(group, dim=1) for x in (k_1KND, v_1KNE))
    call = compiled_flex() if q_1HND.device.type == "cuda" else cast(Callable[..., Any], flex_attention)
    mask, cap = block_mask(documents, scoring.window), softcap_function(scoring.softcap)
    # its other kernel, for decoding, has no backward pass
    options: dict[str, Any] = {"FORCE_USE_FLEX_ATTENTION": True}
    grouped = q_1HND.shape[1] != k_1KND.shape[1]
    if scoring.sinks is None:
        out_1HNE = call(q_1HND, k_1KND, v_1KNE, cap, mask, scoring.scaling, grouped, kernel_options=options)
    else:
        out_1HNE, sums_1HN = call(
            q_1HND,
            k_1KND,
            v_1KNE,
            cap,
            mask,
            scoring.scaling,
            grouped,
            kernel_options=options,
            **logsumexp_option(),
        )
        sums_1HN = getattr(sums_1HN, "lse", sums_1HN)
        share_1HN = torch.sigmoid(sums_1HN.float() - scoring.sinks.float()[None, :, None])
        out_1HNE = (out_1HNE * share_1HN[..., None]).to(v_1KNE.dtype)
    out_1NHE: Tensor = out_1HNE.transpose(1, 2).contiguous()
    return out_1NHE


@cache
def compiled_flex() -> Callable[..., Any]:
    """The function as a kernel, made anew for each kind of call: with and without a window, a cap, gradients,
    and for lengths that vary.

    These are more kinds than PyTorch lets one function have by default, and behind its limit all scores would
    be written to memory, with a mere warning.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    made: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    return made


@cache
def logsumexp_option() -> dict[str, Any]:
    """The keyword that asks for the logarithms of the sums of exp(score); it has changed its name."""
    if "return_aux" in signature(flex_attention).parameters:
        from torch.nn.attention.flex_attention import AuxRequest

        return {"return_aux": AuxRequest(lse=True)}
    return {"return_lse": True}


def softcap_function(softcap: float | None) -> Callable[..., Tensor] | None:
    """The bound of the scores as FlexAttention takes it."""
    if softcap is None:
        return None

    def cap(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def block_mask(documents: Documents, window: int | None) -> BlockMask:
    """Which keys are seen by which queries. Made once for a row and a window."""
    width = documents.longest if window is None else min(window, documents.longest)
    if width not in documents.masks:
        documents.masks[width] = _block_mask(documents, width)
    return documents.masks[width]  # type: ignore[no-any-return]


@torch.inference_mode(False)
def _block_mask(documents: Documents, width: int) -> BlockMask:
    first_N = np.repeat(documents.borders[:-1], np.diff(documents.borders))
    part_QK, full_QK = blocks(first_N, width)
    first = to_device(
        torch.from_numpy(np.pad(first_N, (0, -len(first_N) % BLOCK), mode="edge").astype(np.int32)),
        documents.device,
    )

    def seen(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= first[q]) & (q - k < width)

    (count, which), (full_count, full_which) = (
        [to_device(torch.from_numpy(x), documents.device) for x in block_indices(dense)]
        for dense in (part_QK, full_QK)
    )
    lengths = (documents.tokens, documents.tokens)
    return BlockMask.from_kv_blocks(
        count, which, full_count, full_which, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=lengths
    )


def blocks(first_N: np.ndarray[Any, Any], width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of blocks of 128 queries and 128 keys, which are seen in part and which as a whole: two bool [Q, K],
    from where each token's document begins.

    The lowest key that a query sees never falls from one query to the next. So a block of queries sees all
    blocks from its first query's lowest key up to its own, and as a whole those that lie behind its last
    query's lowest key and before its own.
    """
    lowest_N = np.maximum(first_N, np.arange(len(first_N)) - width + 1)
    own_Q1 = np.arange(-(-len(first_N) // BLOCK))[:, None]
    block_K = own_Q1.T
    begin_Q1, end_Q1 = (
        lowest_N[own_Q1 * BLOCK],
        lowest_N[np.minimum(own_Q1 * BLOCK + BLOCK, len(first_N)) - 1],
    )
    seen_QK = (block_K >= begin_Q1 // BLOCK) & (block_K <= own_Q1)
    full_QK = (block_K * BLOCK >= end_Q1) & (block_K < own_Q1)
    return seen_QK & ~full_QK, full_QK


def block_indices(dense_QK: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """How many blocks each block of queries has, [1, 1, Q], and their numbers, [1, 1, Q, K], of which the
    first so many count; int32.
    """
    return dense_QK.sum(axis=1, dtype=np.int32)[None, None], np.argsort(
        ~dense_QK, axis=1, kind="stable"
    ).astype(np.int32)[None, None]


BACKEND = Backend(name="flex", words="FlexAttention with a block mask", attend=attend, trouble=trouble)
