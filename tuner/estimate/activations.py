"""The bytes that autograd keeps of a layer for its backward pass, for each token: tensor by tensor, as
transformers and PEFT compute it.

A matmul keeps its input where its own weight trains, and nothing where the weight is frozen. An adapter's A
is fp32, so PEFT makes a copy of the input in fp32 for each adapted layer, and A keeps that. RMSNorm computes
in fp32 and keeps its input so. Attention keeps queries, keys, values, its output and a number for each head
(arXiv:2307.08691). Where fp32 weights train under autocast, the residual stream is fp32 and each matmul
keeps a copy of its input in bf16. Standard library only.
"""

from collections.abc import Mapping
from typing import Any

from tuner.config.schema import Algo
from tuner.models.architectures import Architecture, architecture_of
from tuner.models.geometry import Geometry, Shape

Layer = Mapping[str, Shape]
"""the shapes of a layer's tensors, by their names within it"""
Adapted = Mapping[str, tuple[int, int]]
"""(outputs, inputs) of what has an adapter, likewise"""
ENDS = ("down_proj", "c_proj")
"""the last matmul of an MLP"""


def layer_tensors(tensors: Mapping[str, Any], at: int) -> dict[str, Any]:
    """What belongs to a layer, by its name within it."""
    start = f"model.layers.{at}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def saved_bytes(
    geometry: Geometry,
    layer: Layer,
    pairs: Adapted,
    algo: Algo,
    *,
    fused: bool = False,
    compiled: bool = False,
    norms: bool = False,
) -> float:
    """Bytes for each token. `fused`: linear layers with adapters are kernels.fused.adapter_linear, which
    keeps the input as it is, once for all layers that read it. `compiled` and `norms`: see `_compiled`.
    """
    built, a = architecture_of(geometry), activation_bytes(algo)
    if compiled:
        return _compiled(geometry, built, layer, pairs, algo, norms=norms)
    return (
        _norms(layer, algo)
        + (_fused_inputs(pairs) if fused else _matmul_inputs(layer, pairs, algo))
        + _attention(geometry, built, layer, a)
        + _mlp(geometry, built, layer, algo)
    )


def _compiled(
    geometry: Geometry, built: Architecture, layer: Layer, pairs: Adapted, algo: Algo, *, norms: bool
) -> float:
    """Of a compiled layer: its input and the residual after attention, what attention keeps, gate and up, and
    what lies between A and B. Without `norms`, where these are not made again, also what the two norms and
    the MLP's product give.
    """
    a, stream = activation_bytes(algo), activation_bytes(algo) if algo.uses_adapter else 4
    hidden: int = geometry["hidden_size"]
    inner = max((shape[1] for name, shape in layer.items() if _leaf(name) in ENDS), default=hidden)
    found = 2.0 * stream * hidden + _attention(geometry, built, layer, a) + 2 * a * inner
    found += sum(
        a * layer[f"self_attn.{name}_proj.weight"][0]  # what its norm reads
        for name in "qk"
        if f"self_attn.{name}_norm.weight" in layer
    )
    found += a * algo.r * len(pairs)
    return found if norms else found + a * (2 * hidden + inner)


def temporary_bytes(layer: Layer, algo: Algo, hidden: int) -> float:
    """Bytes for each token that the backward pass of an MLP needs besides, when it begins and all that is
    saved is still there.
    """
    inner = max((shape[1] for name, shape in layer.items() if _leaf(name) in ENDS), default=hidden)
    if algo.uses_adapter:
        return (8 if algo.dropout else 4) * inner + 12 * hidden
    return (8 if algo.precision == "fp32" else 6) * inner + 8 * hidden


def activation_bytes(algo: Algo) -> int:
    """Bytes of an activation."""
    return 4 if algo.precision == "fp32" else 2


def _norms(layer: Layer, algo: Algo) -> float:
    adapter, found = algo.uses_adapter, 0.0
    for name, shape in layer.items():
        if "norm" not in name or not name.endswith(".weight"):
            continue
        size, again = shape[0], 4
        # of each head, or of all together; beside the residual stream
        if name in ("self_attn.q_norm.weight", "self_attn.k_norm.weight"):
            size, again = layer.get(f"self_attn.{name[10]}_proj.weight", shape)[0], activation_bytes(algo)
        # the input; where the weight trains, also what it is multiplied with
        found += size * (4 if adapter else 4 + again) + 4
    return found


def _matmul_inputs(layer: Layer, pairs: Adapted, algo: Algo) -> float:
    """The inputs that matmuls keep. Attention's output is the input of o_proj, and is kept anyway."""
    wide, found = algo.precision == "fp32", 0.0
    linears = {
        name.removesuffix(".weight"): shape
        for name, shape in layer.items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    for name, (outputs, inputs) in pairs.items():
        found += 4 * algo.r
        if algo.dropout:
            found += 5 * inputs  # what is left of it, in fp32, and a byte that says which
        elif not wide or _leaf(name) in ENDS:
            found += 4 * inputs
        if algo.dora:
            found += (4 + activation_bytes(algo)) * outputs
    if wide and (pairs or not algo.uses_adapter):  # one copy of a norm's output for all that read it
        found += 4 * linears.get("self_attn.q_proj", (0, 0))[1] * 2
    for name, shape in linears.items():
        leaf = _leaf(name)
        if (not algo.uses_adapter and leaf in ENDS) or (
            algo.quant == "int8" and leaf in (*ENDS, "q_proj", "gate_proj")
        ):
            found += activation_bytes(algo) * shape[1]  # int8 keeps an input once for all that read it
        elif not algo.uses_adapter and leaf != "o_proj" and not wide:
            found += 2 * shape[1]
    return found


def _fused_inputs(pairs: Adapted) -> float:
    """The inputs in bf16: of attention, of the MLP, and of its last matmul. That of o_proj is kept anyway."""
    readers = ("q_proj", "qkv_proj", "gate_proj", "gate_up_proj", "up_proj", *ENDS)
    inputs = {_leaf(name): shape[1] for name, shape in pairs.items()}
    first = next((inputs[name] for name in readers[:2] if name in inputs), 0)
    second = next((inputs[name] for name in readers[2:5] if name in inputs), 0)
    last = next((inputs[name] for name in ENDS if name in inputs), 0)
    return 2.0 * (first + second + last)


def _attention(geometry: Geometry, built: Architecture, layer: Layer, a: int) -> float:
    heads = geometry["num_attention_heads"]
    if built.attention == "latent":  # kernels want values as wide as keys
        return float(heads * (4 * a * (geometry["qk_nope_head_dim"] + geometry["qk_rope_head_dim"]) + 4))
    out = layer["self_attn.o_proj.weight"][1]
    inputs = (
        layer["self_attn.qkv_proj.weight"][0]
        if built.attention == "fused"
        else out + 2 * layer["self_attn.k_proj.weight"][0]
    )
    return float(a * (inputs + out) + 4 * heads)


def _mlp(geometry: Geometry, built: Architecture, layer: Layer, algo: Algo) -> float:
    """Gate, what the activation makes of it, and the other half; of experts, for the routed ones."""
    a, found = activation_bytes(algo), 0.0
    for name, shape in layer.items():
        if len(shape) == 2 and _leaf(name.removesuffix(".weight")) in ENDS:
            found += (1 if built.mlp == "plain" else 3) * a * shape[1]
        elif name.endswith("experts.down_proj"):
            inner = shape[1] if built.experts and built.experts.biased else shape[2]
            once = 3 * inner + geometry["hidden_size"]  # and the output, which is weighted
            again = inner + geometry["hidden_size"] if not algo.uses_adapter else 0
            found += geometry.get("num_experts_per_tok", 1) * a * (once + again)
    return found


def _leaf(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]
