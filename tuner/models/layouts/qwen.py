"""Qwen, the first generation ⇄ Qwen2: exactly up to seq_length tokens, and in training at any length.

`c_attn` is [all q; all k; all v] with a bias, as Qwen2 has it; nothing else has one. The MLP computes
c_proj(w1(x) · silu(w2(x))): w2 is the gate and w1 is up, and config.json's intermediate_size is twice their
width.

Beyond seq_length the original answers (but does not train) with a larger rotary base, base · alpha ** (D / (D
- 2)) where alpha = max(2 ** ceil(log2(L / seq_length) + 1) - 1, 1), and scales the query at position i,
counted from 1, by log(i) / log(seq_length). Qwen2 has neither.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tuner.errors import DataError
from tuner.models.checkpoint.safetensors import Spec
from tuner.models.layouts import llama
from tuner.models.layouts.llama import Sizes
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.models.layouts.original_config import AGAIN, OriginalConfig
from tuner.models.layouts.table import Fusion, Table, buffers

END, TURN = 151643, 151645
"""<|endoftext|>, which also pads, and <|im_end|>: no config.json of this family says them"""

PLAIN = "Only plain checkpoints of Qwen, Qwen-Chat and their sizes are rewritten."

LAYER = {
    "input_layernorm.weight": "ln_1.weight",
    "self_attn.o_proj.weight": "attn.c_proj.weight",
    "post_attention_layernorm.weight": "ln_2.weight",
    "mlp.gate_proj.weight": "mlp.w2.weight",
    "mlp.up_proj.weight": "mlp.w1.weight",
    "mlp.down_proj.weight": "mlp.c_proj.weight",
}
"""Qwen2's names inside a layer → Qwen's"""


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> NativeCheckpoint:
    """The checkpoint as Qwen2's. Raises DataError for what the mapping can't represent."""
    settings = OriginalConfig(layout=layout, config=config)
    sizes = _sizes(settings)
    _refuse(settings, sizes)
    tensors = _table(settings, sizes, specs).to_native(specs)
    window = settings.size("seq_length")
    theta = settings.number("rotary_emb_base", 10000.0)
    native = llama.llama_config(
        settings, sizes, specs, window=window, rope={"rope_type": "default", "rope_theta": theta}, bias=True
    )
    # Qwen2 has its biases where they must be, and no key that says so.
    native = {key: value for key, value in native.items() if key not in ("attention_bias", "mlp_bias")} | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": settings.number("layer_norm_epsilon", 1e-6),
        "attention_dropout": settings.number("attn_dropout_prob", 0.0, zero=True),
        "use_sliding_window": False,
    }
    ids = {"eos_token_id": [END, TURN], "pad_token_id": END} if sizes.vocabulary > TURN else {}
    return NativeCheckpoint(
        config=native,
        tensors=tensors,
        generation=ids,
        kept=buffers(specs),
        warnings=_warnings(settings, window),
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """Qwen2's tensors as Qwen's. An embedding that has grown goes through as it is, with vocab_size as
    large.
    """
    settings = OriginalConfig(layout=layout, config=config)
    return _table(settings, _sizes(settings, specs), specs).to_original(specs)


def _sizes(settings: OriginalConfig, specs: Mapping[str, Spec] | None = None) -> Sizes:
    sizes = llama.sizes_of(settings, specs)
    if sizes.ffn % 2:
        raise settings.refusal(
            "intermediate_size", f"an even number was expected: both halves of the MLP together. {AGAIN}"
        )
    return replace(sizes, groups=sizes.heads, ffn=sizes.ffn // 2)


def _refuse(settings: OriginalConfig, sizes: Sizes) -> None:
    if settings.size("kv_channels", 128) != sizes.dim:
        raise settings.refusal(
            "kv_channels",
            f"{sizes.dim} was expected, which is hidden_size / num_attention_heads (128 where it is absent). "
            f"{PLAIN}",
        )
    for key, usual in {"rotary_pct": 1.0, "no_bias": True, "scale_attn_weights": True}.items():
        settings.usual(key, usual, mend=PLAIN)
    if "visual" in settings.config:
        raise DataError(
            f"This {settings.layout} checkpoint reads images (config.json has `visual`), which Qwen2 does "
            f"not. {PLAIN}"
        )


def _warnings(settings: OriginalConfig, window: int) -> tuple[str, ...]:
    said = []
    if settings.flag("use_dynamic_ntk", True) or settings.flag("use_logn_attn", True):
        said.append(
            f"beyond {window} tokens (seq_length) the original Qwen scales its rotary base (NTK) and its "
            f"queries (log n) when it answers, and Qwen2 does not: answers differ there. Up to {window} "
            "tokens, and in training at any length, the two agree"
        )
    if settings.number("emb_dropout_prob", 0.0, zero=True):
        said.append(
            f"the dropout of the embedding (emb_dropout_prob {settings.config['emb_dropout_prob']}) is left "
            "out: Qwen2 has none"
        )
    return tuple(said)


def _table(settings: OriginalConfig, sizes: Sizes, specs: Mapping[str, Spec]) -> Table:
    names = {
        llama.EMBEDDING: "transformer.wte.weight",
        llama.NORM: "transformer.ln_f.weight",
        llama.HEAD: llama.HEAD,
    }
    ends = llama.outer_shapes(sizes, settings.flag("tie_word_embeddings", False), llama.HEAD, specs)
    same = {names[name]: (name, shape) for name, shape in ends.items()}
    fused: dict[str, tuple[tuple[str, str, str], tuple[int, ...]]] = {}
    for number in range(sizes.layers):
        at, here = f"model.layers.{number}.", f"transformer.h.{number}."
        same |= {
            here + LAYER[name.removeprefix(at)]: (name, shape)
            for name, shape in llama.layer_shapes(sizes, number, bias=False).items()
        }
        fused[f"{here}attn.c_attn.weight"] = (llama.qkv_names(number), (sizes.hidden,))
        fused[f"{here}attn.c_attn.bias"] = (llama.qkv_names(number, "bias"), ())
    fusion = Fusion(groups=1, heads=(sizes.heads, sizes.heads, sizes.heads), dim=sizes.dim)
    return Table(layout=settings.layout, same=same, fusion=fusion, fused=fused)
