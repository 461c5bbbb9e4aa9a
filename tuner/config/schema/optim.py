"""The optimizer: `algo.optim`, and what the rest of the package knows of each.

Another optimizer is an entry of `OPTIMIZERS` with its name in `OptimizerName`, and a branch of
`build_optimizer` in tuner/train/optimizers.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tuner.config.fields import identity

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "muon"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerKind:
    """An optimizer, for plans and estimates."""

    version: int
    """in the identity of training, bumped by hand"""
    saved: float
    """bytes of its state in a checkpoint, for a parameter in a matrix of a layer"""
    on_gpu: float
    """the same in the GPU's memory; what is paged, PyTorch does not count"""
    elsewhere: float = 8.0
    """both, for any other parameter; the default is AdamW's"""
    stepping: float = 0.0
    """bytes of temporaries for each trainable parameter during a step"""
    bitsandbytes: bool = False
    """whether bitsandbytes computes it"""
    zero: bool = False
    """whether it can step the slice of the flattened state that ZeRO gives each process, and be offloaded"""
    unpaged: OptimizerName | None = None
    """the optimizer that computes the same without paging; None where nothing is paged"""
    in_8_bits: OptimizerName | None = None
    """the same optimizer with its moments in 8 bits, where there is one to propose"""


BITS_8 = 2 + 8 / 256
"""two moments of a byte, in blocks of 256 with an fp32 constant for each"""

OPTIMIZERS: Mapping[OptimizerName, OptimizerKind] = {
    "adamw": OptimizerKind(version=1, saved=8.0, on_gpu=8.0, zero=True, in_8_bits="adamw_8bit"),
    "adamw_8bit": OptimizerKind(version=1, saved=BITS_8, on_gpu=BITS_8, bitsandbytes=True),
    "paged_adamw": OptimizerKind(version=1, saved=8.0, on_gpu=0.0, bitsandbytes=True, unpaged="adamw"),
    "paged_adamw_8bit": OptimizerKind(
        version=1, saved=BITS_8, on_gpu=0.0, bitsandbytes=True, unpaged="adamw_8bit"
    ),
    "adafactor": OptimizerKind(version=1, saved=0.1, on_gpu=0.01, stepping=8.0),
    "muon": OptimizerKind(version=1, saved=4.0, on_gpu=4.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer."""

    name: OptimizerName = identity("train", default="adamw", left_out="adamw")
    """`adamw` (arXiv:1711.05101); with its moments in 8 bits (arXiv:2110.02861) or in memory that a full GPU
    pages out, by bitsandbytes; `adafactor` (arXiv:1804.04235); `muon`: orthogonalised momentum on the
    matrices of the layers, AdamW on everything else"""
    lr: float = identity("train", default=2e-4, more_than=0)
    """the peak learning rate, reached after the warm-up"""
    betas: tuple[float, float] = identity("train", default=(0.9, 0.999), at_least=0, less_than=1)
    """decay of the running means of the gradient and of its square; not used by `adafactor`"""
    eps: float = identity("train", default=1e-8, more_than=0)
    """added to the denominator; not used by `adafactor`"""
    weight_decay: float = identity("train", default=0.0, at_least=0)
    """decoupled weight decay, on matrices only"""
    momentum: float = identity("train", default=0.95, left_out=0.95, at_least=0, less_than=1)
    """of `muon`"""

    @property
    def kind(self) -> OptimizerKind:
        """What is known of the optimizer called `name`."""
        return OPTIMIZERS[self.name]
