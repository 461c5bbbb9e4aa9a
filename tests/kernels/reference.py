"""Attention within documents, written out: what every backend is compared with."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from tuner.kernels.backend import Scoring
from tuner.kernels.packed_documents import Documents


def row(lengths: Sequence[int], device: str = "cpu") -> Documents:
    return Documents([0, *accumulate(lengths)], torch.device(device))


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], scoring: Scoring
) -> torch.Tensor:
    """Masked softmax over the whole row, in fp64; returns [1, N, H, D]."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q.device)
    distance = (
        torch.arange(len(document), device=q.device)[:, None]
        - torch.arange(len(document), device=q.device)[None, :]
    )
    seen = (
        (document[:, None] == document[None, :])
        & (distance >= 0)
        & (distance < (scoring.window or len(document)))
    )
    repeat = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(repeat, dim=1) for x in (k, v))
    scores = q.double() @ k.transpose(2, 3) * scoring.scaling
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    weights = scores.masked_fill(~seen, float("-inf")).exp()
    total = weights.sum(-1, keepdim=True)
    if scoring.sinks is not None:
        total = total + scoring.sinks.double().exp()[None, :, None, None]
    return (weights / total @ v).transpose(1, 2)
