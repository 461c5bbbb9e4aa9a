"""A frozen base quantised to 4 or 8 bits, by bitsandbytes.

nf4    4 bits: NF4 in blocks of 64, whose constants are quantised too (QLoRA, arXiv:2305.14314, section 3)
int8   8 bits: each row of a weight by its largest value; inputs are quantised too, token by token, except for
       the columns in which one is above 6, which are multiplied in 16 bits (LLM.int8, arXiv:2208.07339). On
       the CPU, training leaves inputs as they are

It is always the bf16 value that is quantised, whatever arithmetic follows. Quantised are the linear layers
that `targets.linear_layers` names; embeddings, head, norms, routers, vision and audio stay in bf16.
"""

import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from tuner.errors import ConfigError, StageError
from tuner.hardware.libraries import how_to_install
from tuner.models.checkpoint.meta_model import meta_model, stored_specs
from tuner.models.checkpoint.weight_names import map_names
from tuner.models.targets import fused_experts, linear_layers

BLOCK = 64
"""weights that share a constant in 4 bits: what bitsandbytes' layers use on every device"""

OUTLIER = 6.0
"""inputs above this are multiplied in 16 bits (arXiv:2208.07339, section 3.2)"""


BITS = {"nf4": 4, "int8": 8}


def require_library(quant: str) -> None:
    """Raise ConfigError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        bits = BITS[quant]
        raise ConfigError(
            f"algo.quant={quant} holds the base in {bits} bits with bitsandbytes, which is not installed "
            f"here: {how_to_install('bitsandbytes')}"
        )


def quantised_layers(model: PreTrainedModel) -> list[str]:
    """The modules whose weights are to be quantised. bitsandbytes takes plain linear layers, no
    classes derived from them.
    """
    return [name for name in linear_layers(model) if type(model.get_submodule(name)) is torch.nn.Linear]


def quantised_tensors(directory: Path) -> frozenset[str]:
    """The tensors of the checkpoint in `directory` that algo.quant=nf4 or int8 quantises, by their names
    there.
    """
    model = meta_model(directory)
    return quantised_tensors_of(model, map_names(model, stored_specs(directory)).plain)


def quantised_tensors_of(model: PreTrainedModel, names: Mapping[str, str]) -> frozenset[str]:
    """The same for a model that is built already; `names` says what its weights are called in the
    checkpoint.
    """
    return frozenset(
        names[weight] for module in quantised_layers(model) if (weight := f"{module}.weight") in names
    )


def quantization_config(
    model: PreTrainedModel, quant: str, *, compute: torch.dtype, storage: torch.dtype | None = None
) -> Any:
    """What transformers needs to know to load `model` with its `quantised_layers` quantised.

    compute   the dtype of the matmuls
    storage   the dtype whose bytes hold the 4 bits, uint8 when None

    Raises ConfigError for a model whose experts would stay as they are, with their share.
    """
    if kept := sum(parameter.numel() for parameter in fused_experts(model)):
        share = kept / sum(parameter.numel() for parameter in model.parameters())
        raise ConfigError(
            f"algo.quant={quant} saves little here: {share:.0%} of the weights are in experts that "
            "bitsandbytes leaves in bf16, since those of a layer are one tensor of three dimensions and no "
            "linear layers. Set algo.quant=none: LoRA on this model works without it."
        )
    layers = set(quantised_layers(model))
    # Whole names: other patterns match by beginning or end, and mlp.gate would take mlp.gate_proj along.
    others = [
        f"{re.escape(name)}$"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in layers
    ]
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIER, llm_int8_skip_modules=others)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=storage or torch.uint8,
        llm_int8_skip_modules=others,
    )


def prepare_for_training(
    model: PreTrainedModel, layers: list[str], quant: str, *, compute: torch.dtype
) -> None:
    """Make a freshly loaded model fit to train: its layers keep their weights as they are, and what is not
    quantised takes the dtype `compute`.

    Raises StageError when one of `layers` is not quantised.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    modules = dict(model.named_modules())

    def quantised(module: torch.nn.Module) -> bool:
        if quant == "int8":
            return isinstance(module, Linear8bitLt) and module.weight.dtype == torch.int8
        return isinstance(module, Linear4bit) and module.weight.quant_state is not None

    if left := [name for name in layers if not quantised(modules[name])]:
        raise StageError(
            f"{len(left)} of {len(layers)} linear layers are not in {BITS[quant]} bits after loading, first "
            f"{left[0]}: this version of transformers or bitsandbytes leaves them out. Train with "
            "algo.quant=none, or with other versions."
        )
    # At every forward pass in 8 bits it would say that inputs are cast to fp16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    packed = {id(modules[name].weight) for name in layers}
    for module in modules.values():
        if isinstance(module, Linear4bit):
            # A forward pass in eval mode would repack the weight for a faster matmul, and neither gradients
            # nor merging know that order.
            module.support_avx512bf16_for_cpu = False
            # In this dtype the backward pass dequantises the weight; the forward pass does in that of the
            # matmuls.
            module.weight.quant_state.dtype = compute
    for parameter in model.parameters():
        if id(parameter) not in packed and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.to(compute)


def quantise_dequantise(weight: Tensor, quant: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What the frozen base computes with where its checkpoint has `weight`: for "nf4" in `dtype`, for "int8"
    in fp32, for "none" the weight itself.

    dtype   of training's matmuls, algo.precision: in fp32, bitsandbytes does not round to bf16 what it
            dequantises of 4 bits

    In 8 bits it multiplies integers, and scales in fp32; in training on the CPU it dequantises the weight to
    the dtype of the matmuls.

    It is computed where the weight lies. bitsandbytes rounds some constants otherwise on a GPU than on the
    CPU: one weight in 1,600 differs (H100, bitsandbytes 0.50), by 2.4 % at most, which is less in sum
    than rounding to bf16 does.
    """
    if quant == "none":
        return weight
    require_library(quant)
    from bitsandbytes.functional import (
        dequantize_4bit,
        int8_vectorwise_dequant,
        int8_vectorwise_quant,
        quantize_4bit,
    )

    if quant == "int8":  # of fp16 values, as bitsandbytes' layers are
        whole, largest, _ = int8_vectorwise_quant(weight.to(torch.bfloat16).to(torch.float16).contiguous())
        back: Tensor = int8_vectorwise_dequant(whole, largest)
        return back
    packed, state = quantize_4bit(
        weight.to(torch.bfloat16).contiguous(),
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=torch.uint8,
    )
    state.dtype = dtype
    restored: Tensor = dequantize_4bit(packed, state)
    return restored.reshape(weight.shape)  # it takes a weight of two values for a transposed one
