"""MiniCPM, the first and the second generation ⇄ Granite, exactly. The names of the tensors are the same;
four multipliers go into config.json:

    embedding_multiplier = scale_emb                          residual_multiplier = scale_depth / sqrt(layers)
    logits_scaling = hidden_size / dim_model_base             attention_multiplier = D ** -0.5, as everywhere
    but in Granite

The head is tied to the embedding unless config.json says otherwise, and then mostly absent from the file.
"""

from collections.abc import Mapping
from typing import Any

from tuner.models.checkpoint.safetensors import Spec
from tuner.models.layouts import llama
from tuner.models.layouts.llama import Sizes
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.models.layouts.original_config import OriginalConfig
from tuner.models.layouts.table import Table, buffers


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> NativeCheckpoint:
    """The checkpoint as Granite's. Raises DataError for what the mapping can't represent: experts, other
    activations, rope by long factors.
    """
    settings = OriginalConfig(layout=layout, config=config)
    sizes = llama.sizes_of(settings)
    settings.usual("num_experts", 0, mend="The mixture of experts is another model.")
    tensors = _table(settings, sizes, specs).to_native(specs)
    rope = llama.rope_scaling(settings, settings.number("rope_theta", 10000.0))
    native = llama.llama_config(
        settings,
        sizes,
        specs,
        window=settings.size("max_position_embeddings", 2048),
        rope=rope,
        bias=_bias(settings),
    )
    native |= {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "attention_dropout": settings.number("attention_dropout", 0.0, zero=True),
        "tie_word_embeddings": _tied(settings),
        "embedding_multiplier": settings.number("scale_emb", 1),
        "residual_multiplier": settings.number("scale_depth", 1) / sizes.layers**0.5,
        "attention_multiplier": sizes.dim**-0.5,
        "logits_scaling": sizes.hidden / settings.number("dim_model_base", 1),
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2} | {
        key: ids for key, ids in llama.generation_ids(settings, sizes.vocabulary).items() if ids is not None
    }
    return NativeCheckpoint(config=native | ids, tensors=tensors, generation=ids, kept=buffers(specs))


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """Granite's tensors as MiniCPM's: the same ones. An embedding that has grown goes through as it is,
    with vocab_size as large.
    """
    settings = OriginalConfig(layout=layout, config=config)
    return _table(settings, llama.sizes_of(settings, specs), specs).to_original(specs)


def _tied(settings: OriginalConfig) -> bool:
    return settings.flag("tie_word_embeddings", True)


def _bias(settings: OriginalConfig) -> bool:
    return settings.flag("attention_bias", False)


def _table(settings: OriginalConfig, sizes: Sizes, specs: Mapping[str, Spec]) -> Table:
    named = llama.all_shapes(sizes, specs, tied=_tied(settings), bias=_bias(settings))
    return Table(layout=settings.layout, same={name: (name, shape) for name, shape in named.items()})
