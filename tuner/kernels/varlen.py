"""Attention by the flash kernel for documents of varying length that PyTorch brings (arXiv:2307.08691): one
call for the whole row.

Its backward pass gives the same bits each time where torch.use_deterministic_algorithms is on.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tuner.kernels.backend import AttentionNeeds, Backend, Scoring
from tuner.kernels.flash_support import flash_rows, flash_trouble, flash_window
from tuner.kernels.packed_documents import Documents, Offsets


def trouble(needs: AttentionNeeds) -> str | None:
    """Why it can't be used here, if so."""
    if find_spec("torch.nn.attention.varlen") is None:
        return "this PyTorch does not bring it"
    return flash_trouble(needs)


def attend(
    q_1HND: Tensor, k_1KND: Tensor, v_1KNE: Tensor, documents: Documents | Offsets, scoring: Scoring
) -> Tensor:
    """softmax(q k' * scaling) v within each document; returns [1, N, H, E]."""
    from torch.nn.attention.varlen import varlen_attn

    offsets_E, longest = documents.offsets, documents.longest
    window_size = flash_window(scoring.window, longest)
    q_NHF, k_NKF, v_NKF = flash_rows(q_1HND, k_1KND, v_1KNE)
    if takes_enable_gqa():
        out_NHF = varlen_attn(
            q_NHF,
            k_NKF,
            v_NKF,
            offsets_E,
            offsets_E,
            longest,
            longest,
            scale=scoring.scaling,
            window_size=window_size,
            enable_gqa=True,
        )
    # the kernel has always taken fewer key heads than query heads; newer versions want to be told that they
    # are meant
    else:
        out_NHF = varlen_attn(
            q_NHF,
            k_NKF,
            v_NKF,
            offsets_E,
            offsets_E,
            longest,
            longest,
            scale=scoring.scaling,
            window_size=window_size,
        )
    assert isinstance(out_NHF, Tensor)
    return out_NHF[None, :, :, : v_1KNE.shape[-1]]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def takes_enable_gqa() -> bool:
    """Whether this PyTorch's function has a word for grouped heads: from 2.12 on."""
    from torch.nn.attention.varlen import varlen_attn

    return has_parameter(varlen_attn, "enable_gqa")


@cache
def has_parameter(called: Callable[..., Any], name: str) -> bool:
    return name in signature(called).parameters


BACKEND = Backend(
    name="varlen",
    words="PyTorch's own flash kernel for documents of varying length",
    attend=attend,
    trouble=trouble,
    compiles=True,
)
