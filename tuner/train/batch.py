"""From packs to the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tuner.data.tokens import Pack


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Packs laid end to end in one row of N tokens, of which M are targets."""

    ids_1N: torch.Tensor
    """int64 [1, N]: the tokens"""
    positions_1N: torch.Tensor
    """int64 [1, N]: restarting at 0 with every document"""
    keep_M: torch.Tensor
    """int64 [M]: the positions that predict a trained token"""
    targets_M: torch.Tensor
    """int64 [M]: the tokens they predict"""


def collate(packs: Sequence[Pack], device: torch.device | str = "cpu") -> Batch:
    """The packs as one Batch on `device`.

    A token is predicted from the position before it, so a document's first token is no target. Two documents, `a b C` and `d E`
    with the capitals trained:

        ids        a b C d E
        positions  0 1 2 0 1
        keep         1   3        (b predicts C, d predicts E)
        targets      C   E
    """
    ids_N = np.concatenate([pack.ids for pack in packs]).astype(np.int64)
    trained_N = np.concatenate([pack.trained for pack in packs])
    positions_N = np.concatenate([np.arange(length, dtype=np.int64) for pack in packs for length in pack.lengths])
    if len(positions_N) != len(ids_N):
        raise ValueError(f"the documents of the packs have {len(positions_N)} tokens together, the packs {len(ids_N)}")
    targets = np.flatnonzero(trained_N & (positions_N > 0))
    return Batch(
        ids_1N=torch.from_numpy(ids_N)[None].to(device),
        positions_1N=torch.from_numpy(positions_N)[None].to(device),
        keep_M=torch.from_numpy(targets - 1).to(device),
        targets_M=torch.from_numpy(ids_N[targets]).to(device),
    )


def count_targets(packs: Sequence[Pack]) -> int:
    """How many tokens of the packs are trained: what the summed loss of a step is divided by."""
    return sum(int(pack.trained.sum()) for pack in packs)
