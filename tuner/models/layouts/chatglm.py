"""ChatGLM2, ChatGLM3 and GLM-4 in its first layout ⇄ GLM, exactly. ChatGLM-6B, the first, is another model
and maps to nothing.

`query_key_value` is [all q; all k; all v] with a bias, or [q; k; v] head by head where multi_query_attention
is false; gate and up stay one tensor, as GLM has them. Rope turns the first half of each head in neighbouring
pairs, which is GLM's own.

rope_ratio has two meanings under one name: ChatGLM2-32K divides positions by it, ChatGLM3-32K and GLM-4
multiply the base. The layout says which.
"""

from collections.abc import Mapping
from typing import Any

from tuner.errors import DataError
from tuner.models.checkpoint.safetensors import Spec, main_dtype
from tuner.models.layouts import llama
from tuner.models.layouts.llama import Sizes
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.models.layouts.original_config import AGAIN, MOST_LAYERS, OriginalConfig
from tuner.models.layouts.table import Fusion, Shape, Table, buffers

BASE = 10000.0
"""of rope, in all of them"""

ENDS = {"chatglm2": ([2], 0), "chatglm3": ([2, 64795, 64797], 0), "glm4": ([151329, 151336, 151338], 151329)}
"""the ids that end an answer and the one that pads, as published: ChatGLM3 also stops where the user or an
observation would speak
"""

USUAL = {
    "add_bias_linear": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
}
"""what every published checkpoint says, and GLM can't do otherwise"""


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> NativeCheckpoint:
    """The checkpoint as GLM's. Raises DataError for what the mapping can't represent."""
    settings = OriginalConfig(layout=layout, config=config)
    _refuse(settings)
    sizes = _sizes(settings)
    tensors = _table(settings, sizes).to_native(specs)
    ids = _ids(settings, sizes.vocabulary)
    native = {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.groups,
        "head_dim": sizes.dim,
        "hidden_act": "silu",
        "max_position_embeddings": settings.size("seq_length", 2048),
        "rope_parameters": _rope(settings),
        "rms_norm_eps": settings.number("layernorm_epsilon", 1e-5),
        "attention_bias": _bias(settings),
        "attention_dropout": settings.number("attention_dropout", 0.0, zero=True),
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        **ids,
        "dtype": llama.DTYPES[main_dtype(tensor.spec for tensor in tensors)],
    }
    said: tuple[str, ...] = ()
    if settings.number("hidden_dropout", 0.0, zero=True):
        said = (
            (
                f"the dropout between layers (hidden_dropout {config['hidden_dropout']}) is left out: GLM "
                "has none"
            ),
        )
    return NativeCheckpoint(
        config=native, tensors=tensors, generation=ids, kept=buffers(specs), warnings=said
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """GLM's tensors as ChatGLM's. An embedding that has grown goes through as it is, with
    padded_vocab_size as large.
    """
    settings = OriginalConfig(layout=layout, config=config)
    return _table(settings, _sizes(settings, specs)).to_original(specs)


def _sizes(settings: OriginalConfig, specs: Mapping[str, Spec] | None = None) -> Sizes:
    """The sizes in config.json; with the `specs` of a native checkpoint the vocabulary is as large as its
    embedding, which may have grown since.
    """
    heads = settings.size("num_attention_heads")
    hidden = settings.size("hidden_size")
    dim = settings.size("kv_channels")
    if dim % 4:
        raise settings.refusal(
            "kv_channels", f"a multiple of 4 was expected: half of each head is turned, in pairs. {AGAIN}"
        )
    groups = heads if _by_head(settings) else settings.size("multi_query_group_num", 1)
    if heads % groups:
        raise settings.refusal(
            "multi_query_group_num", f"a divisor of num_attention_heads {heads} was expected. {AGAIN}"
        )
    vocabulary = settings.size("padded_vocab_size")
    return Sizes(
        layers=settings.size("num_layers", most=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        groups=groups,
        dim=dim,
        ffn=settings.size("ffn_hidden_size"),
        vocabulary=llama.vocabulary_size(specs or {}) or vocabulary,
    )


def _bias(settings: OriginalConfig) -> bool:
    """Whether query, key and value have one."""
    return settings.flag("add_qkv_bias", False)


def _by_head(settings: OriginalConfig) -> bool:
    """Whether query, key and value lie head by head."""
    return not settings.flag("multi_query_attention", False)


def _refuse(settings: OriginalConfig) -> None:
    for key, usual in USUAL.items():
        settings.usual(key, usual, mend="Use a checkpoint as it was published.")
    settings.usual(
        "quantization_bit",
        0,
        mend="Take the checkpoint that is not quantised, and quantise it here with algo=qlora.",
    )
    settings.usual("pre_seq_len", 0, mend="Take the checkpoint without a tuned prefix (P-Tuning v2).")


def _rope(settings: OriginalConfig) -> dict[str, Any]:
    ratio = float(settings.number("rope_ratio", 1))
    if settings.layout == "chatglm2" and ratio != 1:
        rope: dict[str, Any] = {"rope_type": "linear", "rope_theta": BASE, "factor": ratio}
    else:
        rope = {"rope_type": "default", "rope_theta": BASE * ratio}
    return rope | {"partial_rotary_factor": 0.5}


def _ids(settings: OriginalConfig, vocabulary: int) -> dict[str, int | list[int] | None]:
    """What ends and pads. Each is said, as GLM's own defaults are those of GLM-4; what is published joins
    in where config.json says no more than that.
    """
    ends, pad = ENDS[settings.layout]
    said = settings.ids("eos_token_id", vocabulary)
    if said is None or said == ends[0]:
        fitting = [end for end in ends if end < vocabulary]
        if not fitting:
            raise DataError(
                f"config.json of this {settings.layout} checkpoint has no eos_token_id, and the usual "
                f"{ends[0]} is beyond its vocabulary of {vocabulary}. Say there which token ends an answer."
            )
        said = fitting if len(fitting) > 1 else fitting[0]
    own = settings.ids("pad_token_id", vocabulary)
    return {"eos_token_id": said, "pad_token_id": pad if own is None and pad < vocabulary else own}


def _table(settings: OriginalConfig, sizes: Sizes) -> Table:
    hidden, ends = sizes.hidden, (sizes.vocabulary, sizes.hidden)
    same: dict[str, tuple[str, Shape]] = {
        "transformer.embedding.word_embeddings.weight": (llama.EMBEDDING, ends),
        "transformer.encoder.final_layernorm.weight": (llama.NORM, (hidden,)),
        "transformer.output_layer.weight": (llama.HEAD, ends),
    }
    fused: dict[str, tuple[tuple[str, str, str], Shape]] = {}
    for number in range(sizes.layers):
        here, at = f"transformer.encoder.layers.{number}", f"model.layers.{number}"
        same |= {
            f"{here}.input_layernorm.weight": (f"{at}.input_layernorm.weight", (hidden,)),
            f"{here}.self_attention.dense.weight": (
                f"{at}.self_attn.o_proj.weight",
                (hidden, sizes.heads * sizes.dim),
            ),
            f"{here}.post_attention_layernorm.weight": (f"{at}.post_attention_layernorm.weight", (hidden,)),
            f"{here}.mlp.dense_h_to_4h.weight": (f"{at}.mlp.gate_up_proj.weight", (2 * sizes.ffn, hidden)),
            f"{here}.mlp.dense_4h_to_h.weight": (f"{at}.mlp.down_proj.weight", (hidden, sizes.ffn)),
        }
        fused[f"{here}.self_attention.query_key_value.weight"] = (llama.qkv_names(number), (hidden,))
        if _bias(settings):
            fused[f"{here}.self_attention.query_key_value.bias"] = (llama.qkv_names(number, "bias"), ())
    by_block, by_head = (1, (sizes.heads, sizes.groups, sizes.groups)), (sizes.heads, (1, 1, 1))
    groups, heads = by_head if _by_head(settings) else by_block
    return Table(
        layout=settings.layout,
        same=same,
        fusion=Fusion(groups=groups, heads=heads, dim=sizes.dim),
        fused=fused,
    )
