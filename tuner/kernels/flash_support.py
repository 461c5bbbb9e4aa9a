"""What the flash kernels (arXiv:2307.08691) have in common: where they run, and the shapes that they take."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tuner.kernels.backend import HALF, SHORT, AttentionNeeds, unsupported


def flash_trouble(needs: AttentionNeeds, *, softcap: bool = False, dropout: bool = False) -> str | None:
    """Why a flash kernel (arXiv:2307.08691) can't be used here, if so."""
    if needs.device.type != "cuda":
        return "it runs on NVIDIA GPUs only"
    if needs.dtype not in HALF:
        return f"it computes in bf16 or fp16, not in {SHORT.get(needs.dtype, needs.dtype)}"
    if needs.head_dim > 256:
        return f"it takes a head dimension of at most 256, and this model's is {needs.head_dim}"
    capability = torch.cuda.get_device_capability(needs.device)
    if capability < (8, 0):
        return (
            "it needs an Ampere GPU (compute capability 8.0) or a later one, and this is "
            f"{capability[0]}.{capability[1]}"
        )
    if needs.head_dim > 192 and (capability in ((8, 6), (8, 9)) or capability[0] == 12):
        return (
            f"a head dimension of {needs.head_dim} needs more shared memory in its backward pass than this "
            "GPU has"
        )
    return unsupported(needs, softcap=softcap, dropout=dropout)


def flash_rows(
    q_1HND: Tensor, k_1KND: Tensor, v_1KNE: Tensor, widths: Sequence[int] = range(8, 257, 8)
) -> tuple[Tensor, Tensor, Tensor]:
    """As flash kernels take them: [N, H, F], [N, K, F], [N, K, F], where F is the next of `widths` from the
    width of the heads on.

    Columns of zeros add nothing to a score, and to the output only columns that are cut off again. They are
    needed by heads of unusual width, and where values are narrower than keys.
    """
    widest = max(q_1HND.shape[-1], v_1KNE.shape[-1])
    width = next(width for width in widths if width >= widest)
    q_NHF, k_NKF, v_NKF = (
        (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])))[0].transpose(0, 1)
        for x in (q_1HND, k_1KND, v_1KNE)
    )
    return q_NHF, k_NKF, v_NKF


def flash_keywords(offsets_E: Tensor, longest: int, scaling: float) -> dict[str, Any]:
    """What every version of the package is told of documents, beside q, k and v."""
    return {
        "cu_seqlens_q": offsets_E,
        "cu_seqlens_k": offsets_E,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": scaling,
        "causal": True,
    }


def flash_window(width: int | None, longest: int) -> tuple[int, int]:
    """How many keys before the query's own, and after it, are seen; -1 is all.

    >>> flash_window(None, 9), flash_window(4, 9), flash_window(4, 3)
    ((-1, 0), (3, 0), (-1, 0))
    """
    return (-1 if width is None or width >= longest else width - 1, 0)
