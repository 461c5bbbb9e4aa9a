"""The seam through which every model attends: causal, within documents only.

transformers calls the function registered here instead of its own attention, and passes it the `position_ids` that restart at
every document of a pack. The borders come from there, so neither a cache nor a mask of ones can let documents see each other.

Not covered: generation with a cache, batches of several rows, attention sinks and soft caps; each is refused with a reason.
"""

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from tuner.errors import DataError

NAME = "tuner"


def register() -> None:
    """Make the seam known to transformers as `attn_implementation="tuner"`. Calling it twice changes nothing.

    No mask function is registered beside it, so transformers builds no mask for it.
    """
    AttentionInterface.register(NAME, packed_attention)


def borders(positions_1N: torch.Tensor) -> list[int]:
    """Where documents begin, and where the last one ends.

    Positions 0 1 2 0 1 0 are documents of 3, 2 and 1 tokens: [0, 3, 5, 6].
    """
    starts = (positions_1N[0] == 0).nonzero().flatten().tolist()
    if not starts or starts[0] != 0:
        raise ValueError(f"packed position ids begin at 0, these begin at {positions_1N[0, 0].item()}")
    return [*starts, positions_1N.shape[1]]


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """True where query i may see key j: i - window < j <= i. Shape [length, length], bool."""
    distance_LL = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance_LL >= 0) & (distance_LL < window)


def packed_attention(
    module: torch.nn.Module,
    q_1HND: torch.Tensor,
    k_1KND: torch.Tensor,
    v_1KND: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q k' * scaling) v for each document alone, by PyTorch's SDPA; returns ([1, N, H, D], None).

    H query heads share K key heads (H is a multiple of K). The signature is transformers' own; its further keywords are flags
    of other implementations.
    """
    if softcap is not None or s_aux is not None:
        raise DataError(
            f"This model's {type(module).__name__} has a soft cap or attention sinks, which tuner's packed attention does not compute; choose a model without."
        )
    if position_ids is None or position_ids.ndim != 2 or q_1HND.shape[0] != 1 or q_1HND.shape[2] != k_1KND.shape[2]:
        raise NotImplementedError(
            "packed attention takes one row with position_ids [1, N] and no cache; load the model with attention='sdpa' to generate"
        )
    outputs_1HLD = []
    for begin, end in pairwise(borders(position_ids)):
        mask_LL = window_mask(end - begin, sliding_window, q_1HND.device) if sliding_window and end - begin > sliding_window else None
        outputs_1HLD.append(
            scaled_dot_product_attention(
                q_1HND[:, :, begin:end],
                k_1KND[:, :, begin:end],
                v_1KND[:, :, begin:end],
                attn_mask=mask_LL,
                dropout_p=dropout,
                is_causal=mask_LL is None,
                scale=scaling,
                enable_gqa=q_1HND.shape[1] != k_1KND.shape[1],
            )
        )
    return torch.cat(outputs_1HLD, dim=2).transpose(1, 2).contiguous(), None
