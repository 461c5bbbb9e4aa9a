"""Layers that carry something from token to token outside of attention: recurrent states (Mamba, linear
attention), short convolutions.

They know no document borders: the positions of a packed row are for attention only. A model with such layers
gets one document a row.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

LISTS = (
    "layer_types",
    "layers_block_type",
    "block_types",
    "layers_type",
    "attn_type_list",
    "hybrid_override_pattern",
)
"""what configs call the list of what each layer is"""
STATELESS = frozenset(
    (
        "attention full_attention sliding_attention chunked_attention window_attention indexed_attention "
        "global local moe mlp dense sparse reference_sliding_attention"
    ).split()
)
"""kinds of layers that mix tokens by attention or not at all; whatever else a layer is called is taken for
one that carries a state
"""

DIRECT = ("x_proj", "dt_proj", "out_proj")
"""of a mixer of Mamba's"""


def carried_state(model: PreTrainedModel | PeftModel) -> str | None:
    """What a model carries from one document of a packed row into the next, in words; None for a model with
    attention only.

    Whatever transformers says of it counts: the kinds of layers in its config, its own word that it is
    stateful, a convolution along the tokens.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = base.get_decoder()
    if kinds := sorted(
        {kind for config in (base.config, base.config.get_text_config()) for kind in _kinds(config)}
        - STATELESS
    ):
        return f"{', '.join(kinds)} layers"
    if any(getattr(module, "_is_stateful", False) for module in (base, decoder)):
        return "layers with a state"
    blocks = max(
        (module for _, module in decoder.named_children() if isinstance(module, torch.nn.ModuleList)),
        key=len,
        default=(),
    )
    if any(
        isinstance(module, torch.nn.Conv1d) and max(module.kernel_size) > 1
        for block in blocks
        for module in block.modules()
    ):
        return "convolutions along the tokens"
    return None


def linears_read_by_mixers(model: torch.nn.Module) -> frozenset[str]:
    """The names of linear layers in Mamba's mixers whose weight the mixer reads by itself, here or in its
    kernels on a GPU: an adapter on one, or its quantisation, would have no effect."""
    mixers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "A_log", None), Tensor)
    ]
    found = [
        f"{name}.{child}"
        for name, module in mixers
        if isinstance(getattr(module, "D", None), Tensor)
        for child in DIRECT
        if hasattr(module, child)
    ]
    return frozenset(found)


def _kinds(config: Any) -> Iterator[str]:
    for name in LISTS:
        found = getattr(config, name, None)
        if isinstance(found, (list, tuple)):
            yield from (str(kind) for kind in found)
