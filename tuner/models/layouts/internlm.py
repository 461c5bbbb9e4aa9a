"""InternLM, the first ⇄ Llama, exactly: the names are Llama's already, and what differs is said in
config.json.

`bias` puts one on q, k, v and o. Its rope is `dynamic` with a factor of 1, unless `rotary` says otherwise,
also where config.json lacks that key: the base grows beyond the window. There, cached decoding differs: the
original keeps keys as they were before rotation and rotates all of them again at every step, Llama keeps them
rotated. A pass over the whole text agrees at any length.
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
    sizes = llama.sizes_of(settings)
    window, rope, bias = (
        settings.size("max_position_embeddings", 2048),
        _rope(settings),
        settings.flag("bias", True),
    )
    native = llama.llama_config(settings, sizes, specs, window=window, rope=rope, bias=bias)
    said = (
        f"beyond its window of {window} tokens this model generates otherwise than its original code, which "
        "turns all keys again at every step; up to there, and in training, the two agree"
    )
    return NativeCheckpoint(
        config=native,
        tensors=_table(settings, sizes, specs).to_native(specs),
        generation=llama.generation_ids(settings, sizes.vocabulary),
        kept=buffers(specs),
        warnings=(said,) if rope["rope_type"] == "dynamic" else (),
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """Llama's tensors as InternLM's: the same ones. An embedding that has grown goes through as it is."""
    settings = OriginalConfig(layout=layout, config=config)
    return _table(settings, llama.sizes_of(settings, specs), specs).to_original(specs)


def _rope(settings: OriginalConfig) -> dict[str, Any]:
    rotary = settings.config.get("rotary") or {}
    if not isinstance(rotary, Mapping) or rotary.get("type", "dynamic") not in ("dynamic", "origin"):
        raise settings.refusal("rotary", f"a base and a type, dynamic or origin, were expected. {AGAIN}")
    inner = OriginalConfig(layout=settings.layout, config=rotary)
    theta = inner.number("base", 10000)
    if rotary.get("type", "dynamic") == "origin":
        return {"rope_type": "default", "rope_theta": theta}
    if (factor := inner.number("scaling_factor", 1.0)) < 1:
        raise settings.refusal("rotary", f"a scaling_factor from 1 on was expected. {AGAIN}")
    return {"rope_type": "dynamic", "rope_theta": theta, "factor": float(factor)}


def _table(settings: OriginalConfig, sizes: Sizes, specs: Mapping[str, Spec]) -> Table:
    named = llama.all_shapes(
        sizes, specs, tied=settings.flag("tie_word_embeddings", False), bias=settings.flag("bias", True)
    )
    return Table(layout=settings.layout, same={name: (name, shape) for name, shape in named.items()})
