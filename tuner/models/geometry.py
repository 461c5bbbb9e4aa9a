"""The shapes of a model's tensors from the keys of its config.json, before there are any files. Standard
library only: a plan asks.

A `geometry` is that config.json, or the part of it that decides shapes. Names and shapes are those of the
model in memory, as its class in transformers has it: the experts of a layer are one tensor, and a head that
is tied to the embedding is left out, since files leave it out too. Everything here raises DataError for a
model_type that has no row in `tuner.models.architectures`, and for a key that is missing or no size.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from tuner.errors import DataError
from tuner.models.architectures import Architecture, ExpertLayers, architecture_of

Geometry = Mapping[str, Any]
Shape = tuple[int, ...]

LAYERS, LARGEST = 4096, 1 << 31
"""beyond which a number of layers, or any other size, is a mistake"""
EMBEDDING = "model.embed_tokens.weight"
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""keys of the number of a layer's experts: each family has its own, and transformers reads them for one
another
"""
NOT_ADAPTED = {"embed_tokens", "lm_head", "gate", "router", "shared_expert_gate"}
"""the last part of the name of matrices that no adapter is put around: embedding, head, and what routes
tokens to experts
"""


def tensor_shapes(geometry: Geometry) -> dict[str, Shape]:
    """The shape of each tensor, by its name.

    >>> tiny = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    ...         "vocab_size": 32}
    >>> found = tensor_shapes({"model_type": "llama", **tiny})
    >>> len(found), found["model.layers.0.mlp.down_proj.weight"]
    (12, (8, 12))
    """
    built, hidden, vocabulary = (
        architecture_of(geometry),
        _size(geometry, "hidden_size"),
        _size(geometry, "vocab_size"),
    )
    layers = _size(geometry, "num_hidden_layers", most=LAYERS)
    kinds = {
        sparse: _layer(geometry, built, sparse)
        for sparse in {_sparse(geometry, built.experts, at) for at in range(layers)}
    }
    found: dict[str, Shape] = {EMBEDDING: (vocabulary, hidden)}
    for at in range(layers):
        found |= {
            f"model.layers.{at}.{name}": shape
            for name, shape in kinds[_sparse(geometry, built.experts, at)].items()
        }
    found |= _norm("model.norm", hidden, built)
    if not geometry.get("tie_word_embeddings", built.tied):
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def parameter_count(geometry: Geometry) -> int:
    """How many parameters there are. A tied head counts once; a router's correction biases count, though they
    are not trained by gradients.
    """
    return sum(map(prod, tensor_shapes(geometry).values()))


def active_parameter_count(geometry: Geometry) -> int:
    """Those that one token uses: of the experts only the routed ones. The embedding counts whole, as in
    published figures.
    """
    found = tensor_shapes(geometry)
    of_experts = sum(prod(shape) for name, shape in found.items() if ".experts." in name)
    idle = 0
    if of_experts:
        count = _experts(geometry)
        idle = of_experts // count * (count - min(count, _size(geometry, "num_experts_per_tok")))
    return sum(map(prod, found.values())) - idle


def linear_shapes(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer that algo.targets=all-linear adapts, by its name.

    Neither head nor routers are among them. Experts aren't linear layers: the matrices of a layer's experts
    are one tensor. Beside them, most families have no MLP that PEFT can adapt either (Experts.adapted).
    """
    experts = architecture_of(geometry).experts
    attention_only = experts is not None and not experts.adapted
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensor_shapes(geometry).items()
        if len(shape) == 2
        and name.endswith(".weight")
        and name.split(".")[-2] not in NOT_ADAPTED
        and not (attention_only and ".mlp." in name)
    }


def _layer(geometry: Geometry, built: Architecture, sparse: bool) -> dict[str, Shape]:
    """Of a layer, by names within it."""
    hidden = _size(geometry, "hidden_size")
    found = _attention(geometry, built, hidden)
    if sparse and built.experts:
        found |= _sparse_mlp(geometry, built, built.experts, hidden)
    else:
        found |= _mlp(geometry, built, "mlp", hidden, _size(geometry, "intermediate_size"))
    for name in built.norms:
        found |= _norm(name, hidden, built)
    return found


def _attention(geometry: Geometry, built: Architecture, hidden: int) -> dict[str, Shape]:
    if built.attention == "latent":
        return _latent_attention(geometry, built, hidden)
    heads = _size(geometry, "num_attention_heads")
    # null means the same everywhere; a key that is not there means what the family's class says
    width = _optional(geometry, "head_dim", built.head_dim) or hidden // heads
    groups = (
        _size(geometry, "num_key_value_heads")
        if built.grouped
        else _optional(geometry, "num_key_value_heads", None) or heads
    )
    if built.attention == "fused":
        matrices = {"qkv_proj": ((heads + 2 * groups) * width, hidden)}
    else:
        matrices = {
            "q_proj": (heads * width, hidden),
            "k_proj": (groups * width, hidden),
            "v_proj": (groups * width, hidden),
        }
    found = _linear(geometry, built, "self_attn", matrices | {"o_proj": (hidden, heads * width)})
    if built.query_norm != "none" and (built.query_norm_key is None or geometry.get(built.query_norm_key)):
        together = built.query_norm == "all"
        found["self_attn.q_norm.weight"] = (heads * width if together else width,)
        found["self_attn.k_norm.weight"] = (groups * width if together else width,)
    if built.sinks:
        found["self_attn.sinks"] = (heads,)
    return found


def _latent_attention(geometry: Geometry, built: Architecture, hidden: int) -> dict[str, Shape]:
    """Keys and values from one low-rank vector, and queries too where q_lora_rank is set; part of a key is
    turned by rope and shared by all heads.

    https://arxiv.org/abs/2405.04434, section 2.1, equations 9 to 19.
    """
    heads, rank = _size(geometry, "num_attention_heads"), _size(geometry, "kv_lora_rank")
    plain, turned, value = (
        _size(geometry, key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    if "q_lora_rank" not in geometry:
        raise DataError(
            "model.geometry has no q_lora_rank: it should be the rank of the queries, or null where they "
            "have none."
        )
    queries = _optional(geometry, "q_lora_rank", None)
    out, found = heads * (plain + turned), {}
    if queries is None:
        matrices = {"q_proj": (out, hidden)}
    else:
        matrices = {"q_a_proj": (queries, hidden), "q_b_proj": (out, queries)}
        found["self_attn.q_a_layernorm.weight"] = (queries,)
    matrices |= {
        "kv_a_proj_with_mqa": (rank + turned, hidden),
        "kv_b_proj": (heads * (plain + value), rank),
        "o_proj": (hidden, heads * value),
    }
    return (
        found | {"self_attn.kv_a_layernorm.weight": (rank,)} | _linear(geometry, built, "self_attn", matrices)
    )


def _mlp(geometry: Geometry, built: Architecture, module: str, hidden: int, width: int) -> dict[str, Shape]:
    match built.mlp:
        case "gated":
            matrices = {
                "gate_proj": (width, hidden),
                "up_proj": (width, hidden),
                "down_proj": (hidden, width),
            }
        case "fused":
            matrices = {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
        case "plain":
            matrices = {"c_fc": (width, hidden), "c_proj": (hidden, width)}
    return _linear(geometry, built, module, matrices)


def _sparse_mlp(
    geometry: Geometry, built: Architecture, experts: ExpertLayers, hidden: int
) -> dict[str, Shape]:
    count, width = _experts(geometry), _size(geometry, experts.width)
    found: dict[str, Shape] = {f"mlp.{experts.router}.weight": (count, hidden)}
    if experts.biased:
        found |= {f"mlp.{experts.router}.bias": (count,)}
        found |= {
            "mlp.experts.gate_up_proj": (count, hidden, 2 * width),
            "mlp.experts.gate_up_proj_bias": (count, 2 * width),
        }
        found |= {
            "mlp.experts.down_proj": (count, width, hidden),
            "mlp.experts.down_proj_bias": (count, hidden),
        }
    else:
        found |= {
            "mlp.experts.gate_up_proj": (count, 2 * width, hidden),
            "mlp.experts.down_proj": (count, hidden, width),
        }
    if experts.balanced:
        found[f"mlp.{experts.router}.e_score_correction_bias"] = (count,)
    match experts.shared:
        case "gated":
            found |= _mlp(
                geometry,
                built,
                "mlp.shared_expert",
                hidden,
                _size(geometry, "shared_expert_intermediate_size"),
            )
            found["mlp.shared_expert_gate.weight"] = (1, hidden)
        case "several":
            found |= _mlp(
                geometry, built, "mlp.shared_experts", hidden, width * _size(geometry, "n_shared_experts")
            )
    return found


def _sparse(geometry: Geometry, experts: ExpertLayers | None, layer: int) -> bool:
    """Whether a layer has experts."""
    if experts is None:
        return False
    match experts.sparse:
        case "all":
            return True
        case "later":
            return layer >= _first(geometry, experts)
        case "stepped":
            plain, step = (
                geometry.get("mlp_only_layers") or [],
                _optional(geometry, "decoder_sparse_step", None) or 1,
            )
            return layer not in plain and (layer + 1) % step == 0


def _first(geometry: Geometry, experts: ExpertLayers) -> int:
    """The first layer that has experts."""
    key = "first_k_dense_replace"
    return _size(geometry, key, least=0) if key in geometry else experts.dense


def _linear(
    geometry: Geometry, built: Architecture, module: str, matrices: Mapping[str, tuple[int, int]]
) -> dict[str, Shape]:
    """Weights, and the biases that the family gives them."""
    biased = {
        name
        for bias in built.bias
        if (geometry.get(bias.key, bias.default) if bias.key else bias.default)
        for name in bias.on
    }
    weights: dict[str, Shape] = {f"{module}.{name}.weight": shape for name, shape in matrices.items()}
    return weights | {
        f"{module}.{name}.bias": shape[:1] for name, shape in matrices.items() if name in biased
    }


def _norm(name: str, hidden: int, built: Architecture) -> dict[str, Shape]:
    return {f"{name}.{part}": (hidden,) for part in (("weight", "bias") if built.norm_bias else ("weight",))}


def _experts(geometry: Geometry) -> int:
    """How many each sparse layer has."""
    return _size(geometry, next((key for key in EXPERT_COUNTS if key in geometry), EXPERT_COUNTS[0]))


def _optional(geometry: Geometry, key: str, absent: int | None) -> int | None:
    """A size that may be null, or not there."""
    return _size(geometry, key) if geometry.get(key) is not None else None if key in geometry else absent


def _size(geometry: Geometry, key: str, *, least: int = 1, most: int = LARGEST) -> int:
    value = geometry.get(key)
    if type(value) is not int or not least <= value <= most:
        found = f"says {key}={value!r}" if key in geometry else f"has no {key}"
        raise DataError(
            f"model.geometry {found}, where model_type {geometry.get('model_type')} needs a number from "
            f"{least} to {most}: take it from the model's config.json."
        )
    return value
