"""InternLM3 ⇄ Llama, exactly: the names are Llama's already, and what differs is said in config.json.

`qkv_bias` puts a bias on q, k and v, `bias` one on o and on the MLP. Llama has one switch for q, k, v and o,
so only where the two agree it computes the same. Rope is Llama's own, `dynamic` too. A config.json that
transformers wrote has Llama's words, and is read as well.
"""

from collections.abc import Mapping
from typing import Any

from tuner.models.checkpoint.safetensors import Spec
from tuner.models.layouts import llama
from tuner.models.layouts.llama import Sizes
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.models.layouts.original_config import AGAIN, OriginalConfig
from tuner.models.layouts.table import Table, buffers


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> NativeCheckpoint:
    """The checkpoint as Llama's. Raises DataError for what the mapping can't represent."""
    settings = OriginalConfig(layout=layout, config=config)
    sizes, bias = _sizes(settings), _bias(settings)
    native = llama.llama_config(
        settings,
        sizes,
        specs,
        window=settings.size("max_position_embeddings", 32768),
        rope=_rope(settings),
        bias=bias,
        mlp_bias=bias,
    )
    tensors = _table(settings, sizes, specs).to_native(specs)
    return NativeCheckpoint(
        config=native,
        tensors=tensors,
        generation=llama.generation_ids(settings, sizes.vocabulary),
        kept=buffers(specs),
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """Llama's tensors as InternLM3's: the same ones. An embedding that has grown goes through as it is."""
    settings = OriginalConfig(layout=layout, config=config)
    return _table(settings, _sizes(settings, specs), specs).to_original(specs)


def _sizes(settings: OriginalConfig, specs: Mapping[str, Spec] | None = None) -> Sizes:
    sizes = llama.sizes_of(settings, specs)
    if settings.size("head_dim", sizes.dim) != sizes.dim:
        raise settings.refusal(
            "head_dim",
            f"hidden_size / num_attention_heads, {sizes.dim}, was expected. Such heads are not rewritten: "
            "model.layout=native, with transformers from 5.23 on, trains them as they are.",
        )
    return sizes


def _bias(settings: OriginalConfig) -> bool:
    """Whether all seven projections of a layer have a bias; else none has."""
    attention, rest = (
        _either(settings, *keys) for keys in (("qkv_bias", "attention_bias"), ("bias", "mlp_bias"))
    )
    if attention != rest:
        raise settings.refusal(
            "qkv_bias",
            f"{rest} was expected, as bias is: Llama has a bias on q, k, v and o, or on none of them. "
            f"{AGAIN}",
        )
    return attention


def _either(settings: OriginalConfig, own: str, native: str) -> bool:
    """A switch by the family's own word, or by Llama's."""
    return settings.flag(own if settings.config.get(own) is not None else native, False)


def _rope(settings: OriginalConfig) -> dict[str, Any]:
    said = settings.config.get("rope_parameters")
    if said is None:
        return llama.rope_scaling(settings, settings.number("rope_theta", 10000))
    inner = OriginalConfig(layout=settings.layout, config=said if isinstance(said, Mapping) else {})
    return llama.rope_scaling(settings, inner.number("rope_theta", 10000), "rope_parameters")


def _table(settings: OriginalConfig, sizes: Sizes, specs: Mapping[str, Spec]) -> Table:
    bias = _bias(settings)
    named = llama.all_shapes(
        sizes, specs, tied=settings.flag("tie_word_embeddings", False), bias=bias, mlp_bias=bias
    )
    return Table(layout=settings.layout, same={name: (name, shape) for name, shape in named.items()})
