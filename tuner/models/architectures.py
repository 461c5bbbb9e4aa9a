"""What the layers of each family are made of, as its class in transformers (5.17 and later) builds them.
Standard library only: a plan asks.

A row says only in what a family differs from Llama. The names of keys are those of config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuner.errors import DataError, did_you_mean

QKV = ("q_proj", "k_proj", "v_proj")
QKVO = (*QKV, "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
LATENT = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")
"""the layers of latent attention (arXiv:2405.04434, section 2.1) that attention_bias means"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BiasedLayers:
    """Linear layers that have a bias, or may."""

    on: tuple[str, ...]
    """the last part of their names"""
    key: str | None = None
    """the key that decides; None where nothing does"""
    default: bool = False
    """where that key is absent"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertLayers:
    """The MLP of a sparse layer: a router, and matrices of all experts in one tensor of three dimensions."""

    width: str = "moe_intermediate_size"
    """the key of an expert's inner width"""
    router: str = "gate"
    """what the router is called"""
    shared: Literal["none", "gated", "several"] = "none"
    """besides, an MLP that every token uses: `gated`, Qwen's, with a width of its own; `several`,
    DeepSeek's, as wide as n_shared_experts are
    """
    sparse: Literal["all", "stepped", "later"] = "all"
    """which layers: every one; each decoder_sparse_step-th but mlp_only_layers; those from
    first_k_dense_replace on
    """
    dense: int = 0
    """layers before the first sparse one, where first_k_dense_replace is absent"""
    balanced: bool = False
    """the router has a correction for each expert (arXiv:2408.15664), which is no parameter and lies in
    the checkpoint
    """
    adapted: bool = False
    """whether PEFT can adapt the MLPs that are no experts: of dense layers, and shared. Else it takes the
    names of their matrices for those that experts had in transformers 4, and would adapt the experts instead
    """
    biased: bool = False
    """router and experts have biases, and the experts' matrices are stored inputs first (gpt-oss)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The layers of a model_type."""

    attention: Literal["split", "fused", "latent"] = "split"
    """q, k and v apart; in one matrix, qkv_proj; or through low ranks (arXiv:2405.04434)"""
    mlp: Literal["gated", "fused", "plain"] = "gated"
    """gate and up apart; in one matrix, gate_up_proj; or no gate: c_fc and c_proj"""
    experts: ExpertLayers | None = None
    head_dim: int | None = None
    """of a head, where the key is absent; None: hidden_size / num_attention_heads"""
    grouped: bool = False
    """num_key_value_heads has to be there: the family's default is a number of its own. Else it defaults
    to num_attention_heads
    """
    bias: tuple[BiasedLayers, ...] = ()
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """of a layer"""
    norm_bias: bool = False
    """LayerNorm, not RMSNorm"""
    query_norm: Literal["none", "head", "all"] = "none"
    """norms of queries and keys: of each head, with one weight for all, or of all heads together"""
    query_norm_key: str | None = None
    """the key that turns them on"""
    sinks: bool = False
    """a learned logit for each head, which takes attention away from the tokens"""
    tied: bool = False
    """the head is the embedding, where tie_word_embeddings is absent"""


_ATTENTION = BiasedLayers(on=QKVO, key="attention_bias")
_MLP = BiasedLayers(on=GATED, key="mlp_bias")
_AROUND = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_GLM4 = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
_GLM_BIAS = BiasedLayers(on=QKV, key="attention_bias", default=True)
_LATENT_BIAS = BiasedLayers(on=LATENT, key="attention_bias")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(bias=(_ATTENTION, _MLP)),
    "internlm3": Architecture(
        head_dim=128,
        grouped=True,
        bias=(_ATTENTION, BiasedLayers(on=QKVO, key="qkv_bias"), _MLP, BiasedLayers(on=GATED, key="bias")),
    ),
    "granite": Architecture(bias=(_ATTENTION, _MLP)),
    "smollm3": Architecture(grouped=True, bias=(_ATTENTION, _MLP), tied=True),
    "mistral": Architecture(grouped=True),
    "ministral3": Architecture(head_dim=128, grouped=True),
    "mixtral": Architecture(grouped=True, experts=ExpertLayers(width="intermediate_size")),
    "qwen2": Architecture(grouped=True, bias=(BiasedLayers(on=QKV, default=True),)),
    "qwen2_moe": Architecture(
        grouped=True,
        bias=(BiasedLayers(on=QKV, key="qkv_bias", default=True),),
        experts=ExpertLayers(shared="gated", sparse="stepped", adapted=True),
    ),
    "qwen3": Architecture(head_dim=128, grouped=True, bias=(_ATTENTION,), query_norm="head"),
    "qwen3_moe": Architecture(
        grouped=True, bias=(_ATTENTION,), query_norm="head", experts=ExpertLayers(sparse="stepped")
    ),
    "glm": Architecture(head_dim=128, grouped=True, mlp="fused", bias=(_GLM_BIAS,)),
    "glm4": Architecture(head_dim=128, grouped=True, mlp="fused", bias=(_GLM_BIAS,), norms=_GLM4),
    "glm4_moe": Architecture(
        grouped=True,
        bias=(BiasedLayers(on=QKV, key="attention_bias"),),
        query_norm="head",
        query_norm_key="use_qk_norm",
        experts=ExpertLayers(shared="several", sparse="later", dense=1, balanced=True),
    ),
    "gemma": Architecture(head_dim=256, grouped=True, bias=(_ATTENTION,), tied=True),
    "gemma2": Architecture(head_dim=256, grouped=True, bias=(_ATTENTION,), norms=_AROUND, tied=True),
    "gemma3_text": Architecture(
        head_dim=256, grouped=True, bias=(_ATTENTION,), norms=_AROUND, query_norm="head", tied=True
    ),
    "phi3": Architecture(attention="fused", mlp="fused"),
    "olmo2": Architecture(bias=(_ATTENTION,), norms=_AFTER, query_norm="all"),
    "olmo3": Architecture(bias=(_ATTENTION,), norms=_AFTER, query_norm="all"),
    "olmoe": Architecture(
        bias=(_ATTENTION,), query_norm="all", experts=ExpertLayers(width="intermediate_size")
    ),
    "seed_oss": Architecture(
        head_dim=128,
        grouped=True,
        bias=(_GLM_BIAS, BiasedLayers(on=("o_proj",), key="attention_out_bias"), _MLP),
    ),
    "starcoder2": Architecture(
        mlp="plain",
        grouped=True,
        bias=(BiasedLayers(on=(*QKVO, "c_fc", "c_proj"), key="use_bias", default=True),),
        norm_bias=True,
        tied=True,
    ),
    "minicpm3": Architecture(attention="latent", bias=(_LATENT_BIAS, _MLP), tied=True),
    "deepseek_v2": Architecture(
        attention="latent", bias=(_LATENT_BIAS, _MLP), experts=ExpertLayers(shared="several", sparse="later")
    ),
    "deepseek_v3": Architecture(
        attention="latent",
        bias=(_LATENT_BIAS,),
        experts=ExpertLayers(shared="several", sparse="later", dense=3, balanced=True),
    ),
    "gpt_oss": Architecture(
        head_dim=64,
        grouped=True,
        bias=(BiasedLayers(on=QKVO, key="attention_bias", default=True),),
        sinks=True,
        experts=ExpertLayers(width="intermediate_size", router="router", biased=True),
    ),
}
"""by model_type"""


def architecture_of(geometry: Mapping[str, Any]) -> Architecture:
    """That of the model_type. Raises DataError for one that is not known here."""
    kind = geometry.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise DataError(
            f"model.geometry names the model_type {kind!r}, whose layers are not known "
            f"here.{did_you_mean(str(kind), ARCHITECTURES)} Without model.geometry, sizes are counted once "
            "the model's files are there."
        )
    return ARCHITECTURES[kind]
