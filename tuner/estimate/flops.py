"""How many floating-point operations a training run needs, and how many a GPU can do per second at most.
Standard library only: a plan asks.

A matmul of [N, I] and [I, O] is 2·N·I·O operations. A matrix W takes one matmul per token forward, one
backward for the gradient of its input, and one for its own gradient if it trains: 6·W per token for full
fine-tuning (arXiv:2001.08361, section 2.1), but 4·W for a frozen base, plus 6 times the adapters' parameters.
Experts count for the tokens routed to them, the head for the targets, at which alone it runs, and attention
for the pairs of a query and a key within a document.

Not counted, as is usual: element-wise work, norms, the softmax, the loss, what restores 4-bit weights, and
the norms of DoRA.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tuner.config.schema import Algo
from tuner.models.architectures import architecture_of
from tuner.models.geometry import EMBEDDING, EXPERT_COUNTS, Geometry, linear_shapes, tensor_shapes

HEAD = "lm_head"
FIRST = ("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa")
LAST = ("down_proj", "c_proj")
"""matrices that read what comes into a layer's attention, and those that end its MLP"""

PEAKS: Mapping[str, float] = {
    "B300": 2250e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "H800 PCIe": 756.5e12,
    "H800": 989.4e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119.5e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX A6000": 154.8e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""bf16 matmuls with fp32 sums, dense, in operations per second, as NVIDIA's datasheets say; the first name
that a card's has in it counts
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Operations of a forward and a backward pass."""

    token: float
    """for each token"""
    target: float
    """for each target, besides"""
    pairs: Mapping[int | None, float]
    """for each pair of a query and a key that it may see, by the window of the layers; None: all before it"""
    forward_token: float
    """of these, what a forward pass through the layers takes: what recomputation does once more"""
    forward_pairs: Mapping[int | None, float]

    def model(self, lengths: Iterable[int], targets: int) -> float:
        """What documents of these lengths need, with so many targets in all: what the model FLOPs
        utilisation counts (arXiv:2204.02311, B).
        """
        found = list(lengths)
        return self.token * sum(found) + self.target * targets + _attention(self.pairs, found)

    def hardware(self, lengths: Iterable[int], targets: int, *, recompute: float) -> float:
        """The same, with the second forward pass of a share of the layers (machine.recompute)."""
        found = list(lengths)
        again = self.forward_token * sum(found) + _attention(self.forward_pairs, found)
        return self.model(found, targets) + recompute * again


def costs(geometry: Geometry, algo: Algo) -> Costs:
    """Of training as `algo` says, from the native config.json of the model. Raises DataError where that
    tells no shapes.
    """
    found, adapter = layer_matrices(geometry), algo.uses_adapter
    adapters = adapted_layers(geometry, algo.targets) if adapter else {}
    begin = _begin(geometry, algo, adapters)
    forward = backward = 0.0
    for name, (size, _) in found.items():
        place, own = _place(name), adapters.get(name, (0, 0))
        forward += 2 * (size + algo.r * sum(own))
        # gradients of A and B, and of what lies between them
        backward += 2 * algo.r * sum(own) + 2 * algo.r * own[0]
        if begin < place:
            backward += 2 * size + 2 * algo.r * own[1]  # gradient of the input
        if not adapter and begin[0] <= place[0]:
            backward += 2 * size
    tensors = tensor_shapes(geometry)
    rows, columns = tensors[EMBEDDING]
    head_trains = not adapter and "head" not in algo.freeze and (begin[0] < 0 or f"{HEAD}.weight" in tensors)
    pair = 2.0 * _pair_width(geometry, tensors)
    forward_pairs: dict[int | None, float] = {}
    pairs: dict[int | None, float] = {}
    for at, window in enumerate(attention_windows(geometry)):
        forward_pairs[window] = forward_pairs.get(window, 0.0) + pair
        pairs[window] = pairs.get(window, 0.0) + pair * (3 if begin < (at, 1) else 1)
    return Costs(
        token=forward + backward,
        target=2.0 * rows * columns * (3 if head_trains else 2)
        + 6 * algo.r * sum(adapters.get(HEAD, (0, 0))),
        pairs=pairs,
        forward_token=forward,
        forward_pairs=forward_pairs,
    )


def _begin(geometry: Geometry, algo: Algo, adapters: Iterable[str]) -> tuple[int, int]:
    """The place of the first matrix that trains, or before it: what lies behind needs the gradient of its
    input.
    """
    if algo.uses_adapter:
        return min(
            (_place(name) for name in adapters if name != HEAD), default=(geometry["num_hidden_layers"], 0)
        )
    if algo.last_layers is not None:
        return max(0, geometry["num_hidden_layers"] - algo.last_layers), -1  # its norm
    tied = f"{HEAD}.weight" not in tensor_shapes(geometry)
    return (0, -1) if "embeddings" in algo.freeze or (tied and "head" in algo.freeze) else (-1, 0)


def _place(name: str) -> tuple[int, int]:
    """Where a matrix stands in the forward pass: the layer, and in it 0 for what attention begins with, 1
    for its end, 2 and 3 for the MLP.
    """
    layer, _, inside = name.split(".layers.")[1].partition(".")
    leaf = inside.rpartition(".")[2]
    return int(layer), 0 if leaf in FIRST else 3 if leaf in LAST else 2 if inside.startswith("mlp.") else 1


def layer_matrices(geometry: Geometry) -> dict[str, tuple[float, int]]:
    """(parameters that a token uses, parameters in all) of each matrix in the layers, by its module's name; a
    token uses its routed experts only.
    """
    share = 1.0
    if architecture_of(geometry).experts is not None:
        count = next((geometry[key] for key in EXPERT_COUNTS if key in geometry), 1)
        share = min(count, geometry.get("num_experts_per_tok", count)) / count
    found = {}
    for name, shape in tensor_shapes(geometry).items():
        if ".layers." in name and (len(shape) == 3 or (len(shape) == 2 and name.endswith(".weight"))):
            size = prod(shape)
            found[name.removesuffix(".weight")] = (size * share if len(shape) == 3 else size, size)
    return found


def adapted_layers(geometry: Geometry, targets: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer that algo.targets puts an adapter on, as tuner.models.targets
    chooses them in the built model.
    """
    found = linear_shapes(geometry)
    if targets == "all-linear":
        return found
    wanted = [targets] if isinstance(targets, str) else list(targets)
    every = found | {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensor_shapes(geometry).items()
        if len(shape) == 2 and name.endswith(".weight") and name != EMBEDDING
    }
    patterns = [
        rf"(?:.*\.)?{re.escape(target)}" if re.fullmatch(r"[\w.-]+", target) else target for target in wanted
    ]
    return {
        name: shape
        for name, shape in every.items()
        if any(re.fullmatch(pattern, name) for pattern in patterns)
    }


def attention_windows(geometry: Geometry) -> list[int | None]:
    """How many keys back each layer attends, itself included; None without a limit."""
    layers, window = geometry["num_hidden_layers"], geometry.get("sliding_window")
    if not window or not geometry.get("use_sliding_window", True):
        return [None] * layers
    if isinstance(kinds := geometry.get("layer_types"), list):
        return [window if kind == "sliding_attention" else None for kind in kinds]
    pattern = geometry.get("sliding_window_pattern")  # every so many layers, one sees all
    return [None if pattern and (at + 1) % pattern == 0 else window for at in range(layers)]


def visible_pairs(length: int, window: int | None) -> int:
    """The pairs of a query and a key that it may see, in a document of so many tokens.

    >>> visible_pairs(4, None), visible_pairs(4, 2), visible_pairs(4, 9)
    (10, 7, 10)
    """
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) // 2 + (length - reach) * reach


def peak_flops(name: str) -> float | None:
    """Operations a second of a card that torch or nvidia-smi calls so, in bf16; None for one that is not
    known.

    >>> (peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("NVIDIA A100-SXM4-80GB"),
    ...  peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU"), peak_flops("NVIDIA A1000"))
    (989400000000000.0, 312000000000000.0, None, None)
    """
    if re.search(r"Laptop|Max-Q|MIG", name):  # slower than the card they are named after, or a part of it
        return None
    return next(
        (
            speed
            for card, speed in PEAKS.items()
            if re.search(rf"(?<![A-Za-z0-9]){card}(?![A-Za-z0-9])", name)
        ),
        None,
    )


def _attention(pairs: Mapping[int | None, float], lengths: Sequence[int]) -> float:
    return sum(
        cost * sum(visible_pairs(length, window) for length in lengths) for window, cost in pairs.items()
    )


def _pair_width(geometry: Geometry, tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers of query and value over all heads: a score takes a dot product of a query's width, and its use
    one of a value's.
    """
    if architecture_of(geometry).attention == "latent":
        widths = (geometry[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        return int(geometry["num_attention_heads"] * sum(widths))
    return 2 * tensors["model.layers.0.self_attn.o_proj.weight"][1]
