"""What a model has and what of it trains, in parameters and bytes, as far as estimates need it. Standard
library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from tuner.config.schema import Algo
from tuner.estimate.activations import Adapted, activation_bytes, layer_tensors, saved_bytes, temporary_bytes
from tuner.estimate.flops import HEAD, adapted_layers
from tuner.models.geometry import EMBEDDING, Geometry, Shape, linear_shapes, tensor_shapes

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""bytes of a weight in 4 bits: with 8 bits for the constant of 64 weights, and 32 for that of 256
constants (arXiv:2305.14314, section 3)
"""
HELD = {"nf4": NF4, "int8": 1.0}
"""bytes of a frozen weight, by algo.quant"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """Numbers of parameters and bytes of a model that trains as algo says."""

    hidden: int
    vocabulary: int
    layers: int
    tied: bool
    frozen: float
    """bytes of what does not train"""
    trains: int
    """trainable parameters"""
    matrices: int
    """of these, in layers"""
    layer: int
    """of these, in the largest layer"""
    head: int
    """parameters of the head, where it trains"""
    embedding: int
    """of the embedding, where it trains and is not the head"""
    saved: float
    """bytes for a token, over all layers"""
    largest: float
    """of the layer that saves most"""
    temporary: float
    restored: float
    """bytes of the largest matrix that is taken out of 4 bits"""


def read_model(
    geometry: Geometry, algo: Algo, *, fused: bool = False, compiled: bool = False, norms: bool = False
) -> TrainedModel:
    """From the native config.json of the model; `fused`, `compiled` and `norms` as in saved_bytes. Raises
    DataError where that tells no shapes.
    """
    tensors, adapter, a = tensor_shapes(geometry), algo.uses_adapter, activation_bytes(algo)
    count, (vocabulary, hidden) = geometry["num_hidden_layers"], tensors[EMBEDDING]
    pairs = adapted_layers(geometry, algo.targets) if adapter else {}
    held = linear_shapes(geometry) if algo.quant != "none" else {}
    layers = [(layer_tensors(tensors, at), layer_tensors(pairs, at)) for at in range(count)]
    begin = 0 if adapter or algo.last_layers is None else max(0, count - algo.last_layers)
    numbers = [_trains(layer, own, algo) if at >= begin else 0 for at, (layer, own) in enumerate(layers)]
    tied, outer = f"{HEAD}.weight" not in tensors, vocabulary * hidden
    high = not adapter and "head" not in algo.freeze
    low = not adapter and algo.last_layers is None and "embeddings" not in algo.freeze and (high or not tied)
    head = outer * (high and (low or not tied))
    embedding = outer * (low and not tied)
    on_head = algo.r * sum(pairs.get(HEAD, (0, 0)))
    every = sum(map(prod, tensors.values()))
    norm = hidden * (not adapter and "norms" not in algo.freeze)
    trains = sum(numbers) + head + embedding + on_head + norm
    packed = sum(prod(shape) for shape in held.values())
    frozen = (every - packed) * a + packed * HELD.get(algo.quant, a) if adapter else (every - trains) * a
    keep = [
        saved_bytes(geometry, layer, own, algo, fused=fused, compiled=compiled, norms=norms)
        if at >= begin
        else 0.0
        for at, (layer, own) in enumerate(layers)
    ]
    return TrainedModel(
        hidden=hidden,
        vocabulary=vocabulary,
        layers=count - begin,
        tied=tied,
        frozen=frozen,
        trains=trains,
        matrices=sum(numbers),
        layer=max(numbers),
        head=head,
        embedding=embedding,
        saved=sum(keep),
        largest=max(keep),
        temporary=max(temporary_bytes(layer, algo, hidden) for layer, _ in layers),
        restored=float(max(map(prod, held.values()), default=0) * a),
    )


def _trains(layer: Mapping[str, Shape], pairs: Adapted, algo: Algo) -> int:
    """Trainable parameters of a layer."""
    if algo.uses_adapter:
        return sum(algo.r * sum(shape) + (shape[0] if algo.dora else 0) for shape in pairs.values())
    return sum(
        prod(shape) for name, shape in layer.items() if "norm" not in name or "norms" not in algo.freeze
    )


def count_trainable(geometry: Geometry, algo: Algo) -> tuple[int, int]:
    """Trainable parameters, and how many of them are in layers. Raises DataError like `read_model`."""
    model = read_model(geometry, algo)
    return model.trains, model.matrices
