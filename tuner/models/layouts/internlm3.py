"""InternLM3 ⇄ Llama, exactly: the names are Llama's already, and what differs is said in config.json.

`qkv_bias` puts a bias on q, k and v, `bias` one on o and on the MLP. Llama has one switch for q, k, v and o,
so only where the two agree it computes the same. Rope is Llama's own, `dynamic` too. A config.json that
transformers wrote has Llama's words, and is read as well.
"""

from collections.abc import Mapping
from typing import Any

from tuner.models.checkpoint.safetensors import Spec
from tuner.models.layouts import llama
from tuner.models.layouts.llama import Geometry
from tuner.models.layouts.piece import Native, Piece
from tuner.models.layouts.settings import AGAIN, Settings
from tuner.models.layouts.table import Table, buffers


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> Native:
    """The checkpoint as Llama's. Raises DataError for what the mapping can't represent."""
    settings = Settings(layout=layout, config=config)
    sizes, bias = _geometry(settings), _bias(settings)
    native = llama.config(
        settings,
        sizes,
        specs,
        window=settings.size("max_position_embeddings", 32768),
        rope=_rope(settings),
        bias=bias,
        mlp_bias=bias,
    )
    pieces = _table(settings, sizes, specs).to_native(specs)
    return Native(
        config=native,
        pieces=pieces,
        generation=llama.generation(settings, sizes.vocabulary),
        kept=buffers(specs),
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[Piece]:
    """Llama's tensors as InternLM3's: the same ones. An embedding that has grown goes through as it is."""
    settings = Settings(layout=layout, config=config)
    return _table(settings, _geometry(settings, specs), specs).to_original(specs)


def _geometry(settings: Settings, specs: Mapping[str, Spec] | None = None) -> Geometry:
    sizes = llama.geometry(settings, specs)
    if settings.size("head_dim", sizes.dim) != sizes.dim:
        raise settings.refusal(
            "head_dim",
            f"hidden_size / num_attention_heads, {sizes.dim}, was expected. Such heads are not rewritten: "
            "model.layout=native, with transformers from 5.23 on, trains them as they are.",
        )
    return sizes


def _bias(settings: Settings) -> bool:
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


def _either(settings: Settings, own: str, native: str) -> bool:
    """A switch by the family's own word, or by Llama's."""
    return settings.flag(own if settings.config.get(own) is not None else native, False)


def _rope(settings: Settings) -> dict[str, Any]:
    said = settings.config.get("rope_parameters")
    if said is None:
        return llama.rope_scaling(settings, settings.number("rope_theta", 10000))
    inner = Settings(layout=settings.layout, config=said if isinstance(said, Mapping) else {})
    return llama.rope_scaling(settings, inner.number("rope_theta", 10000), "rope_parameters")


def _table(settings: Settings, sizes: Geometry, specs: Mapping[str, Spec]) -> Table:
    bias = _bias(settings)
    named = llama.named(
        sizes, specs, tied=settings.flag("tie_word_embeddings", False), bias=bias, mlp_bias=bias
    )
    return Table(layout=settings.layout, same={name: (name, shape) for name, shape in named.items()})
