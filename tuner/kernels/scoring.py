"""What a family's attention asks for beyond softmax(q k') v, and the shapes that flash kernels take."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

HALF = (torch.bfloat16, torch.float16)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How the scores of one layer are made, and what becomes of them."""

    scaling: float
    """of q k'"""
    window: int | None = None
    """a query sees so many keys at most, its own being the last"""
    softcap: float | None = None
    """c in c tanh(score / c): Gemma 2's bound of the scores (arXiv:2408.00118, section 2)"""
    sinks: Tensor | None = None
    """[H]: a score for each head that takes its share of the softmax and has no value (gpt-oss)"""
    dropout: float = 0.0
    """the share of the softmax's results that is dropped"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionNeeds:
    """What a kernel must be able to do, to be used for a model here. All of them do windows, and fewer key
    heads than query heads.
    """

    device: torch.device
    dtype: torch.dtype
    """of queries, keys and values"""
    head_dim: int
    """the widest of all layers"""
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False


def unsupported(needs: AttentionNeeds, *, softcap: bool = False, dropout: bool = False) -> str | None:
    """The first thing that is needed and that a kernel does not do, in words; `softcap` and `dropout` say
    whether it does those.
    """
    if needs.softcap and not softcap:
        return "it can't cap the scores, as this model does"
    if needs.sinks:
        return "it has no attention sinks, as this model has"
    if needs.dropout and not dropout:
        return "it has no dropout, as this model's attention has"
    return None


def flash_trouble(needs: AttentionNeeds, *, softcap: bool = False, dropout: bool = False) -> str | None:
    """Why a flash kernel (arXiv:2307.08691) can't be used here, if so."""
    if needs.device.type != "cuda":
        return "it runs on NVIDIA GPUs only"
    if needs.dtype not in HALF:
        return f"it computes in bf16 or fp16, not in {SHORT.get(needs.dtype, needs.dtype)}"
    if needs.head_dim > 256:
        return f"it takes heads of 256 numbers at most, and this model has {needs.head_dim}"
    capability = torch.cuda.get_device_capability(needs.device)
    if capability < (8, 0):
        return (
            "it needs an Ampere GPU (compute capability 8.0) or a later one, and this is "
            f"{capability[0]}.{capability[1]}"
        )
    if needs.head_dim > 192 and (capability in ((8, 6), (8, 9)) or capability[0] == 12):
        return (
            f"heads of {needs.head_dim} numbers need more shared memory in its backward pass than this "
            "GPU has"
        )
    return unsupported(needs, softcap=softcap, dropout=dropout)


def flash_rows(q_1HND: Tensor, k_1KND: Tensor, v_1KNE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As flash kernels take them: [N, H, F], [N, K, F], [N, K, F], where F is the width of the heads, up to
    the next multiple of 8.

    Columns of zeros add nothing to a score, and to the output columns that are cut off again. They are needed
    by heads of unusual width, and where values are narrower than keys.
    """
    width = -(-max(q_1HND.shape[-1], v_1KNE.shape[-1]) // 8) * 8
    q_NHF, k_NKF, v_NKF = (
        (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])))[0].transpose(0, 1)
        for x in (q_1HND, k_1KND, v_1KNE)
    )
    return q_NHF, k_NKF, v_NKF
