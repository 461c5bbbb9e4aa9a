"""InternLM2 and InternLM2.5 ⇄ Llama, exactly.

The one tensor `wqkv` holds a group for each key/value head: its query heads in order, then the key, then the
value. The rest is renamed. `dynamic` rope scaling is Llama's own: base · (factor · L / window - (factor - 1))
** (D / (D - 2)) once a text of L tokens is longer than the window.
"""

from collections.abc import Mapping
from typing import Any

from tuner.models.checkpoint.safetensors import Spec
from tuner.models.layouts import llama
from tuner.models.layouts.llama import Sizes
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.models.layouts.original_config import OriginalConfig
from tuner.models.layouts.table import Fusion, Table, buffers

NAMES = {
    llama.EMBEDDING: "model.tok_embeddings.weight",
    llama.NORM: "model.norm.weight",
    llama.HEAD: "output.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "self_attn.o_proj.bias": "attention.wo.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
}
"""Llama's names → InternLM2's; inside layers, what follows `model.layers.N.`"""


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> NativeCheckpoint:
    """The checkpoint as Llama's. Raises DataError for what the mapping can't represent."""
    settings = OriginalConfig(layout=layout, config=config)
    sizes = llama.sizes_of(settings)
    native = llama.llama_config(
        settings,
        sizes,
        specs,
        window=settings.size("max_position_embeddings", 2048),
        rope=llama.rope_scaling(settings, settings.number("rope_theta", 10000)),
        bias=settings.flag("bias", True),
    )
    tensors = _table(settings, sizes, NAMES[llama.HEAD], specs).to_native(specs)
    return NativeCheckpoint(
        config=native,
        tensors=tensors,
        generation=llama.generation_ids(settings, sizes.vocabulary),
        kept=buffers(specs),
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """Llama's tensors as InternLM2's. An embedding that has grown goes through as it is."""
    settings = OriginalConfig(layout=layout, config=config)
    return _table(settings, llama.sizes_of(settings, specs), llama.HEAD, specs).to_original(specs)


def _table(settings: OriginalConfig, sizes: Sizes, head: str, specs: Mapping[str, Spec]) -> Table:
    bias = settings.flag("bias", True)
    same = {
        NAMES[name]: (name, shape)
        for name, shape in llama.outer_shapes(
            sizes, settings.flag("tie_word_embeddings", False), head, specs
        ).items()
    }
    fused: dict[str, tuple[tuple[str, str, str], tuple[int, ...]]] = {}
    for number in range(sizes.layers):
        at = f"model.layers.{number}."
        same |= {
            at + NAMES[name.removeprefix(at)]: (name, shape)
            for name, shape in llama.layer_shapes(sizes, number, bias).items()
        }
        fused[f"{at}attention.wqkv.weight"] = (llama.qkv_names(number), (sizes.hidden,))
        if bias:
            fused[f"{at}attention.wqkv.bias"] = (llama.qkv_names(number, "bias"), ())
    fusion = Fusion(groups=sizes.groups, heads=(sizes.heads // sizes.groups, 1, 1), dim=sizes.dim)
    return Table(layout=settings.layout, same=same, fusion=fusion, fused=fused)
