"""Gradients beside each other, by some of their values."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from tuner.train.batch import Batch
from tuner.train.engine import Engine

VALUES = 65_536
"""values of a tensor's gradient that are looked at"""


def sampled_gradient(engine: Engine, batches: Sequence[Batch], targets: int) -> dict[str, Tensor]:
    """By parameter, values of the gradient of these micro batches, on the CPU. The engine keeps it, and
    what it had before is gone.
    """
    engine.reset()
    engine.forward_backward(batches, targets)
    return {name: _values(tensor).cpu().clone() for name, tensor in engine.gradients()}


def gradient_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[float, str]:
    """||found - expected|| / ||expected|| over all parameters, and the one that is most of it."""
    size = sum(float(values.double().square().sum()) for values in expected.values())
    off = {name: float((found[name] - values).double().square().sum()) for name, values in expected.items()}
    difference = (sum(off.values()) / size) ** 0.5 if size else float(any(off.values()))
    return difference, max(off, key=off.__getitem__)


def _values(tensor: Tensor) -> Tensor:
    """At most so many values of a tensor, evenly spaced, flat."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // VALUES))]
