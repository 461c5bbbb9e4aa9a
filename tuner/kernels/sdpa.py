"""Attention by PyTorch's scaled_dot_product_attention, a document at a time: on any device and in any dtype.

Scores that are capped, or have sinks, are written out in memory instead.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from tuner.kernels.backend import AttentionNeeds, Backend, Scoring
from tuner.kernels.packed_documents import Documents


def trouble(_needs: AttentionNeeds) -> str | None:
    """Nothing keeps it from running."""
    return None


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """True where query i may see key j: i - window < j <= i. Shape [length, length], bool."""
    distance_LL = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance_LL >= 0) & (distance_LL < window)


def attend(q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, documents: Documents, scoring: Scoring) -> Tensor:
    """softmax(q k' * scaling) v for each document alone; returns [1, N, H, D]."""
    scored = scoring.softcap is not None or scoring.sinks is not None
    outputs_1HLD = []
    for begin, end in pairwise(documents.borders):
        q_1HLD, k_1KLD, v_1KLD = (x[:, :, begin:end] for x in (q_1HND, k_1KND, v_1KND))
        length, window = end - begin, scoring.window or end - begin
        mask_LL = window_mask(length, window, q_1HND.device) if scored or window < length else None
        if scored:
            assert mask_LL is not None
            outputs_1HLD.append(scored_attention(q_1HLD, k_1KLD, v_1KLD, mask_LL, scoring))
            continue
        outputs_1HLD.append(
            scaled_dot_product_attention(
                q_1HLD,
                k_1KLD,
                v_1KLD,
                attn_mask=mask_LL,
                dropout_p=scoring.dropout,
                is_causal=mask_LL is None,
                scale=scoring.scaling,
                enable_gqa=q_1HLD.shape[1] != k_1KLD.shape[1],
            )
        )
    return torch.cat(outputs_1HLD, dim=2).transpose(1, 2).contiguous()


def scored_attention(
    q_1HLD: Tensor, k_1KLD: Tensor, v_1KLD: Tensor, mask_LL: Tensor, scoring: Scoring
) -> Tensor:
    """softmax(c tanh(q k' scaling / c)) v with all scores in memory, [1, H, L, L] in fp32; returns [1, H,
    L, D].
    """
    group = q_1HLD.shape[1] // k_1KLD.shape[1]
    k_1HLD, v_1HLD = (x.repeat_interleave(group, dim=1) for x in (k_1KLD, v_1KLD))
    scores_1HLL = (q_1HLD @ k_1HLD.transpose(2, 3)).float() * scoring.scaling
    if scoring.softcap is not None:
        scores_1HLL = scoring.softcap * torch.tanh(scores_1HLL / scoring.softcap)
    scores_1HLL = scores_1HLL.masked_fill(~mask_LL, float("-inf"))
    if scoring.sinks is not None:
        sinks_1HL1 = scoring.sinks.float().view(1, -1, 1, 1).expand(*scores_1HLL.shape[:3], 1)
        scores_1HLL = torch.cat([scores_1HLL, sinks_1HL1], dim=-1)
    shares_1HLL = torch.softmax(scores_1HLL, dim=-1)[..., : mask_LL.shape[1]]
    if scoring.dropout:
        shares_1HLL = dropout(shares_1HLL, p=scoring.dropout)
    return shares_1HLL.to(v_1HLD.dtype) @ v_1HLD


BACKEND = Backend(name="sdpa", words="SDPA, document by document", attend=attend, trouble=trouble)
