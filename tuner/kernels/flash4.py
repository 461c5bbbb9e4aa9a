"""Attention by FlashAttention 4 (the package `flash-attn-4`), for Hopper and Blackwell: one call for the
whole row, as two operators that a compiler passes by.

The kernels are written in Python on CUTLASS, so the package needs no compiler for CUDA; each is built when it
is first used. Their tiles follow from the documents' offsets, not from the longest document, so offsets that
are left over at a row's end cost next to nothing.
"""

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tuner.errors import in_one_line
from tuner.kernels.backend import AttentionNeeds, Backend, Scoring
from tuner.kernels.flash_support import flash_keywords, flash_rows, flash_trouble, flash_window
from tuner.kernels.packed_documents import Documents, Offsets

CAPABILITIES = (9, 10)
"""compute capabilities that it is fast on"""
WIDTHS = (64, 96, 128)
"""of heads whose gradients are right: those of others were seen to be wrong (version 4.0.0b36, of 80 the
queries'), so they are filled up
"""


def installed() -> bool:
    """Whether the package is there. Nothing is imported of it."""
    return find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None


def trouble(needs: AttentionNeeds) -> str | None:
    """Why it can't be used here, if so."""
    if reason := flash_trouble(needs):
        return reason
    if torch.cuda.get_device_capability(needs.device)[0] not in CAPABILITIES:
        return "it is for Hopper and Blackwell GPUs (compute capability 9 and 10)"
    if needs.head_dim > WIDTHS[-1]:
        return f"it takes a head dimension of at most {WIDTHS[-1]}, and this model's is {needs.head_dim}"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward pass is not known to give the same bits each time (machine.deterministic)"
    if not installed():
        return "flash-attn-4 is not installed (the extra `flash4`)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package's, of cutlass
            from flash_attn.cute import interface  # noqa: F401
    except Exception as error:  # made for another PyTorch or CUDA, or without its compiler
        return f"it can't be imported ({in_one_line(error)})"
    return None


def attend(
    q_1HND: Tensor, k_1KND: Tensor, v_1KNE: Tensor, documents: Documents | Offsets, scoring: Scoring
) -> Tensor:
    """softmax(q k' * scaling) v within each document; returns [1, N, H, E]."""
    before, _ = flash_window(scoring.window, documents.longest)
    q_NHF, k_NKF, v_NKF = (x.contiguous() for x in flash_rows(q_1HND, k_1KND, v_1KNE, WIDTHS))
    out_NHF, _ = flash4_forward(
        q_NHF, k_NKF, v_NKF, documents.offsets, documents.longest, scoring.scaling, before
    )
    out_1NHE: Tensor = out_NHF[None, :, :, : v_1KNE.shape[-1]]
    return out_1NHE


def _words(offsets_E: Tensor, longest: int, scaling: float, before: int) -> dict[str, Any]:
    words = flash_keywords(offsets_E, longest, scaling)
    return words | ({"window_size_left": before, "window_size_right": 0} if before >= 0 else {})


@torch.library.custom_op("tuner::flash4_forward", mutates_args=())
def flash4_forward(
    q_NHF: Tensor,
    k_NKF: Tensor,
    v_NKF: Tensor,
    offsets_E: Tensor,
    longest: int,
    scaling: float,
    before: int,
) -> tuple[Tensor, Tensor]:
    """softmax(q k' * scaling) v, [N, H, F], and the log of the softmax' sum, fp32 [H, N].

    before  keys that a query sees before its own; -1 is all of its document
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    found = _flash_attn_fwd(
        q_NHF, k_NKF, v_NKF, **_words(offsets_E, longest, scaling, before), return_lse=True
    )
    return found[0], found[1]


@flash4_forward.register_fake
def _(q_NHF: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_NHF), q_NHF.new_empty(q_NHF.shape[1], q_NHF.shape[0], dtype=torch.float32)


@torch.library.custom_op("tuner::flash4_backward", mutates_args=())
def flash4_backward(
    q_NHF: Tensor,
    k_NKF: Tensor,
    v_NKF: Tensor,
    out_NHF: Tensor,
    d_out_NHF: Tensor,
    logsum_HN: Tensor,
    offsets_E: Tensor,
    longest: int,
    scaling: float,
    before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    from flash_attn.cute.interface import _flash_attn_bwd

    words = _words(offsets_E, longest, scaling, before)
    found = _flash_attn_bwd(q_NHF, k_NKF, v_NKF, out_NHF, d_out_NHF.contiguous(), logsum_HN, **words)
    return found[0], found[1], found[2]


@flash4_backward.register_fake
def _(q_NHF: Tensor, k_NKF: Tensor, v_NKF: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_NHF), torch.empty_like(k_NKF), torch.empty_like(v_NKF)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q_NHF, k_NKF, v_NKF, offsets_E, *ctx.numbers = inputs
    ctx.save_for_backward(q_NHF, k_NKF, v_NKF, *output, offsets_E)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out_NHF: Tensor, _: Any) -> Any:
    q_NHF, k_NKF, v_NKF, out_NHF, logsum_HN, offsets_E = ctx.saved_tensors
    found = flash4_backward(q_NHF, k_NKF, v_NKF, out_NHF, d_out_NHF, logsum_HN, offsets_E, *ctx.numbers)
    return *found, None, None, None, None


flash4_forward.register_autograd(_backward, setup_context=_keep)

BACKEND = Backend(
    name="flash4",
    words="FlashAttention 4 (the package flash-attn-4)",
    attend=attend,
    trouble=trouble,
    package="flash-attn-4",
    compiles=True,
)
