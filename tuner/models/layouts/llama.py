"""What the families that become Llama share: their geometry, how Llama's config.json says it, and what
Llama calls its tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.models.checkpoint.safetensors import Spec, main_dtype
from tuner.models.layouts.original_config import AGAIN, MOST_LAYERS, OriginalConfig

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""the types of a checkpoint as config.json calls them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sizes that decide the shapes of the tensors."""

    layers: int
    hidden: int
    heads: int
    """of the query"""
    groups: int
    """heads of key and value"""
    dim: int
    """rows of a head; all heads together need not be as wide as the model"""
    ffn: int
    vocabulary: int
    """rows of the embedding and of the head"""


def sizes_of(settings: OriginalConfig, specs: Mapping[str, Spec] | None = None) -> Sizes:
    """The sizes in a config.json that has Llama's words for them.

    With the `specs` of a native checkpoint the vocabulary is as large as its embedding, which may have grown
    since.
    """
    hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    groups = settings.size("num_key_value_heads", heads)
    if hidden % (2 * heads) or hidden < 4 * heads:
        raise settings.refusal(
            "num_attention_heads",
            f"heads of an even width, 4 or more, were expected, together hidden_size {hidden}. {AGAIN}",
        )
    if heads % groups:
        raise settings.refusal(
            "num_key_value_heads", f"a divisor of num_attention_heads {heads} was expected. {AGAIN}"
        )
    vocabulary = settings.size("vocab_size")
    return Sizes(
        layers=settings.size("num_hidden_layers", most=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        groups=groups,
        dim=hidden // heads,
        ffn=settings.size("intermediate_size"),
        vocabulary=vocabulary_size(specs or {}) or vocabulary,
    )


def vocabulary_size(specs: Mapping[str, Spec]) -> int | None:
    """How many tokens the embedding of a native checkpoint has rows for; None where it has no such matrix."""
    return specs[EMBEDDING].shape[0] if EMBEDDING in specs and len(specs[EMBEDDING].shape) == 2 else None


def llama_config(
    settings: OriginalConfig,
    sizes: Sizes,
    specs: Mapping[str, Spec],
    *,
    window: int,
    rope: Mapping[str, Any],
    bias: bool,
    mlp_bias: bool = False,
    eps: float = 1e-6,
) -> dict[str, Any]:
    """Llama's config.json, whole.

    window    max_position_embeddings
    rope      rope_parameters
    bias      whether the four projections of attention have one
    mlp_bias  whether the three of the MLP do
    eps       rms_norm_eps where the original does not say
    """
    settings.usual("hidden_act", "silu", mend="Other checkpoints of this family have it so.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.groups,
        "head_dim": sizes.dim,
        "hidden_act": "silu",
        "max_position_embeddings": window,
        "rope_parameters": dict(rope),
        "rms_norm_eps": settings.number("rms_norm_eps", eps),
        "attention_bias": bias,
        "attention_dropout": 0.0,
        "mlp_bias": mlp_bias,
        "tie_word_embeddings": settings.flag("tie_word_embeddings", False),
        "use_cache": True,
        **generation_ids(settings, sizes.vocabulary),
        "dtype": DTYPES.get(main_dtype(specs.values()), "float32") if specs else "float32",
    }


def generation_ids(settings: OriginalConfig, vocabulary: int) -> dict[str, int | list[int] | None]:
    """The ids that begin, end and pad, as far as config.json says."""
    return {key: settings.ids(key, vocabulary) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def rope_scaling(settings: OriginalConfig, theta: float, key: str = "rope_scaling") -> dict[str, Any]:
    """rope_parameters of what config.json says under `key`: null, or {type: default}, or {type: linear or
    dynamic, factor}.

    `linear` divides positions by the factor; `dynamic` makes the base larger with every token beyond
    max_position_embeddings.
    """
    scaling = settings.config.get(key)
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, Mapping) else None
    if scaling is None or kind == "default":
        return {"rope_type": "default", "rope_theta": theta}
    if not isinstance(scaling, Mapping) or kind not in ("linear", "dynamic"):
        raise settings.refusal(key, f"null, or a type linear or dynamic with a factor, was expected. {AGAIN}")
    factor = OriginalConfig(layout=settings.layout, config=scaling).number("factor")
    if factor < 1:
        raise settings.refusal(key, f"a factor from 1 on was expected. {AGAIN}")
    return {"rope_type": kind, "rope_theta": theta, "factor": float(factor)}


def outer_shapes(
    sizes: Sizes, tied: bool, head: str, specs: Mapping[str, Spec]
) -> dict[str, tuple[int, ...]]:
    """Llama's names of what is outside its layers, with shapes. A tied head may be absent from the file:
    `head` is what it would be called there.
    """
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (sizes.vocabulary, sizes.hidden), NORM: (sizes.hidden,)}
    if not tied or head in specs:
        found[HEAD] = (sizes.vocabulary, sizes.hidden)
    return found


def layer_shapes(sizes: Sizes, number: int, bias: bool, mlp_bias: bool = False) -> dict[str, tuple[int, ...]]:
    """Llama's names of what is inside a layer besides q, k and v, with shapes."""
    hidden, ffn, at = sizes.hidden, sizes.ffn, f"model.layers.{number}"
    found: dict[str, tuple[int, ...]] = {
        f"{at}.input_layernorm.weight": (hidden,),
        f"{at}.self_attn.o_proj.weight": (hidden, hidden),
        f"{at}.post_attention_layernorm.weight": (hidden,),
        f"{at}.mlp.gate_proj.weight": (ffn, hidden),
        f"{at}.mlp.up_proj.weight": (ffn, hidden),
        f"{at}.mlp.down_proj.weight": (hidden, ffn),
    }
    biases: dict[str, tuple[int, ...]] = {f"{at}.self_attn.o_proj.bias": (hidden,)} if bias else {}
    if mlp_bias:
        biases |= {
            f"{at}.mlp.{name}_proj.bias": (size,)
            for name, size in (("gate", ffn), ("up", ffn), ("down", hidden))
        }
    return found | biases


def all_shapes(
    sizes: Sizes, specs: Mapping[str, Spec], *, tied: bool, bias: bool, mlp_bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """All of Llama's names, with shapes: for a family whose tensors are called the same."""
    found, kinds = (
        outer_shapes(sizes, tied, HEAD, specs),
        {"weight": (sizes.hidden,)} | ({"bias": ()} if bias else {}),
    )
    for number in range(sizes.layers):
        found |= layer_shapes(sizes, number, bias, mlp_bias)
        for kind, tail in kinds.items():
            query, key, value = qkv_names(number, kind)
            width = sizes.groups * sizes.dim
            found |= {query: (sizes.hidden, *tail), key: (width, *tail), value: (width, *tail)}
    return found


def qkv_names(number: int, kind: str = "weight") -> tuple[str, str, str]:
    """Llama's names of a layer's q, k and v."""
    at = f"model.layers.{number}.self_attn"
    return f"{at}.q_proj.{kind}", f"{at}.k_proj.{kind}", f"{at}.v_proj.{kind}"
