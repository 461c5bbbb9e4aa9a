"""The optimizer: `algo.optim`."""

from dataclasses import dataclass
from typing import Literal

from tuner.config.fields import identity

BITSANDBYTES = frozenset({"adamw_8bit", "paged_adamw", "paged_adamw_8bit"})
"""values of algo.optim.name that bitsandbytes computes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "muon"] = identity(
        "train", default="adamw", left_out="adamw"
    )
    """`adamw` (arXiv:1711.05101); with its moments in 8 bits (arXiv:2110.02861) or in memory that a full GPU
    pages out, by bitsandbytes; `adafactor` (arXiv:1804.04235); `muon`: orthogonalised momentum on the
    matrices of the layers, AdamW on everything else"""
    lr: float = identity("train", default=2e-4)
    """the highest learning rate, reached after the warm-up"""
    betas: tuple[float, float] = identity("train", default=(0.9, 0.999))
    """decay of the running means of the gradient and of its square; `adafactor` uses neither"""
    eps: float = identity("train", default=1e-8)
    """added to the denominator, but for `adafactor`"""
    weight_decay: float = identity("train", default=0.0)
    """decoupled weight decay, on matrices only"""
    momentum: float = identity("train", default=0.95, left_out=0.95)
    """of `muon`"""
