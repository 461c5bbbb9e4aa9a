"""Baichuan and Baichuan2 ⇄ Llama: 7B exactly to Llama, 13B to Llama with ALiBi in place of rope
(tuner.kernels.alibi).

`W_pack` is [all q; all k; all v]; the other names are Llama's. Baichuan2 multiplies by a head whose rows are
divided by their 2-norm, on every use. Here that is done once, so its own head is kept for the way back; a
head that has trained has no place in that layout.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.safetensors import Spec
from tuner.models.layouts import llama
from tuner.models.layouts.detection import ALIBI, NORMALISED, WITHOUT_CLASS
from tuner.models.layouts.llama import Sizes
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.models.layouts.original_config import OriginalConfig
from tuner.models.layouts.table import Fusion, Table, buffers

ROWS = 4096
"""rows of a head that are normalised at a time"""


def to_native(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> NativeCheckpoint:
    """The checkpoint as Llama's, or as the class of tuner.kernels.alibi, whose model_type plain transformers
    does not know.

    Raises DataError for what the mapping can't represent.
    """
    settings = OriginalConfig(layout=layout, config=config)
    sizes = llama.sizes_of(settings)
    window = (
        settings.size("model_max_length", 4096)
        if layout in WITHOUT_CLASS
        else settings.size("max_position_embeddings", 4096)
    )
    settings.usual("rope_scaling", None, mend="Use the checkpoint as it was published.")
    native = llama.llama_config(
        settings,
        sizes,
        specs,
        window=window,
        rope={"rope_type": "default", "rope_theta": 10000.0},
        bias=False,
    )
    if layout in WITHOUT_CLASS:
        native |= {"model_type": ALIBI, "architectures": ["AlibiLlamaForCausalLM"]}
    tensors = _table(settings, sizes, specs).to_native(specs)
    kept = buffers(specs)
    if layout in NORMALISED:
        tensors = [
            replace(tensor, make=normalised) if tensor.spec.name == llama.HEAD else tensor
            for tensor in tensors
        ]
        kept = (*kept, llama.HEAD)
    return NativeCheckpoint(
        config=native, tensors=tensors, generation=llama.generation_ids(settings, sizes.vocabulary), kept=kept
    )


def to_original(config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str) -> list[MappedTensor]:
    """Llama's tensors as Baichuan's. An embedding that has grown goes through as it is, but in Baichuan2,
    where its head could not follow.
    """
    settings = OriginalConfig(layout=layout, config=config)
    sizes = llama.sizes_of(settings, specs)
    if layout in NORMALISED and sizes.vocabulary != (before := settings.size("vocab_size")):
        otherwise = "" if layout in WITHOUT_CLASS else ", or write the native layout: merge.layout=native"
        raise DataError(
            f"The vocabulary has {sizes.vocabulary} tokens, where this {layout} checkpoint had {before}. Its "
            "original layout normalises the head on every use, so the rows of new tokens can't be written "
            f"in it. Train without model.new_tokens{otherwise}."
        )
    tensors = _table(settings, sizes, specs).to_original(specs)
    return [tensor for tensor in tensors if layout not in NORMALISED or tensor.spec.name != llama.HEAD]


def normalised(head_VC: Tensor) -> Tensor:
    """W / max(2-norm of each row, 1e-12), in the dtype of W, as the original does it.

    The norms are summed in fp64 and then rounded to that dtype: so the result does not depend on the order in
    which a device adds. fp16 has no 1e-12, and its smallest number stands in.
    """
    least = max(1e-12, torch.finfo(head_VC.dtype).smallest_normal)
    return torch.cat(
        [
            rows / rows.double().norm(dim=1, keepdim=True).clamp_min(least).to(rows.dtype)
            for rows in torch.split(head_VC, ROWS)
        ]
    )


def _table(settings: OriginalConfig, sizes: Sizes, specs: Mapping[str, Spec]) -> Table:
    settings.usual("tie_word_embeddings", False, mend="Use the checkpoint as it was published.")
    settings.usual("num_key_value_heads", sizes.heads, mend="Use the checkpoint as it was published.")
    named = llama.outer_shapes(sizes, False, llama.HEAD, specs)
    fused: dict[str, tuple[tuple[str, str, str], tuple[int, ...]]] = {}
    for number in range(sizes.layers):
        named |= llama.layer_shapes(sizes, number, bias=False)
        fused[f"model.layers.{number}.self_attn.W_pack.weight"] = (llama.qkv_names(number), (sizes.hidden,))
    fusion = Fusion(groups=1, heads=(sizes.heads, sizes.heads, sizes.heads), dim=sizes.dim)
    return Table(
        layout=settings.layout,
        same={name: (name, shape) for name, shape in named.items()},
        fusion=fusion,
        fused=fused,
    )
