"""A model from a directory, ready to train or to measure, or with an adapter merged into it."""

import os
import warnings
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from tuner.errors import ConfigError, DataError
from tuner.hardware.cpu import has_bf16
from tuner.hardware.cuda_driver import cuda_problem, why_no_gpu
from tuner.hardware.gpus import VISIBLE_DEVICES, gpus_hidden
from tuner.kernels.attention import IMPLEMENTATION, register_attention
from tuner.models import quantize
from tuner.models.attention_needs import generation_attention, unfold_positions
from tuner.models.checkpoint.meta_model import meta_model, stored_specs
from tuner.models.checkpoint.weight_names import WeightNames, check_fit, map_names
from tuner.models.lora import tied_head
from tuner.models.lora.merge import overlay

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def resolve_device(wish: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Raises ConfigError when a GPU is present and can't be used: that
    is never a silent CPU run.

    A CUDA_VISIBLE_DEVICES that hides every GPU asks for the CPU.
    """
    if wish == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as said:  # in a warning, torch says why CUDA does not start
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return torch.device("cuda")
    if gpus_hidden(os.environ):
        reason = f"{VISIBLE_DEVICES}={os.environ[VISIBLE_DEVICES]!r} hides every GPU"
    elif why := cuda_problem(os.environ, str(said[0].message) if said else "it does not say why"):
        raise ConfigError(f"machine.device={wish} finds a GPU that can't be used. {why.paragraph}")
    else:
        reason = why_no_gpu()
    if wish == "auto":
        return torch.device("cpu")
    raise ConfigError(
        f"machine.device={wish} needs an NVIDIA GPU, and {reason}. Fix that, or train on the CPU with "
        "machine=cpu."
    )


def dtype_name(dtype: torch.dtype) -> str:
    """As algo.precision calls it."""
    return next(key for key, value in PRECISIONS.items() if value == dtype)


def compute_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """The dtype of the matmuls for algo.precision.

    A CPU without bf16 instructions multiplies bf16 matrices ten times slower than fp32 ones. There, bf16
    means weights rounded to bf16 and arithmetic in fp32: a difference of rounding, which is neutral.
    """
    if precision == "bf16" and torch.device(device).type == "cpu" and not has_bf16():
        return torch.float32
    return PRECISIONS[precision]


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = IMPLEMENTATION,
    rounded: torch.dtype | None = None,
    quant: str = "none",
    storage: torch.dtype | None = None,
) -> PreTrainedModel:
    """The language model in a Hugging Face directory, in eval mode, with weights in `dtype` on `device`.

    attention   "tuner" for packed rows without a cache, "sdpa" to generate (a family that has no SDPA takes
                "eager" instead)
    rounded     weights take this dtype's values first: torch.bfloat16 with dtype=torch.float32 computes in
                fp32 on bf16 weights
    quant       "nf4" or "int8": the linear layers in 4 or 8 bits, see tuner.models.quantize; `dtype` is then
                that of the matmuls, and the base is bf16
    storage     the dtype whose bytes hold the 4 bits: torch.bfloat16 where weights are sharded, which takes
                floats only; the bits are the same

    Weights go straight to the device, a few tensors at a time. Code in the directory never runs. Raises
    DataError when it holds no model that transformers knows or whose weights and config.json contradict each
    other, and ConfigError where 4 or 8 bits are impossible.
    """
    model, _ = _load(directory, dtype=dtype, device=device, attention=attention, quant=quant, storage=storage)
    if quant == "none" and rounded is not None and rounded != dtype:
        _round(model, rounded)
    return model


def load_tuned(
    base: Path,
    adapter: Path | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = IMPLEMENTATION,
    rounded: torch.dtype | None = None,
    quant: str = "none",
) -> PreTrainedModel:
    """The model that `load_model` gives for the merged directory of `base` and `adapter`, bit for bit,
    without that directory.

    The weights take the values that merging writes, in `rounded` (bf16 when None), whatever `dtype` is.
    `quant` says how the base was held while the adapter trained: for "nf4" and "int8" the merged weights are
    those of the base in 4 or 8 bits plus B·A. Without an adapter it is the model in `base` as it lies
    there. Beside the model there is never more than one of its tensors. Raises DataError like `load_model`,
    and StageError when the adapter doesn't fit.
    """
    if adapter is None:
        return load_model(base, dtype=dtype, device=device, attention=attention, rounded=rounded)
    model, names = _load(base, dtype=dtype, device=device, attention=attention)
    held = quantize.quantised_tensors_of(model, names.plain) if quant != "none" else frozenset()
    code = "F32" if rounded == torch.float32 else "BF16"
    laid = overlay(base, adapter, dtype=code, quant=quant, quantised=held, names=names.plain)
    plain = dict(names.plain)
    if laid.head is not None:
        tie = tied_head.tied_head_of(model)
        assert tie is not None
        tied_head.untie_head(model)
        plain[tie.head] = laid.head
    done = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in done:  # a head that is tied to the embedding
            continue
        done.add(tensor.data_ptr())
        if name in plain:
            tensor.copy_(laid.value(plain[name]))
        elif tensor.is_floating_point() and any(
            laid.specs[part].dtype == "BF16" for part in names.made.get(name, ())
        ):
            tensor.copy_(tensor.to(torch.bfloat16))
    if rounded is not None and rounded != dtype:
        _round(model, rounded)
    return model


def _load(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str,
    quant: str = "none",
    storage: torch.dtype | None = None,
) -> tuple[PreTrainedModel, WeightNames]:
    """The model, and what its weights are in the checkpoint."""
    logging.disable_progress_bar()
    bare, specs = meta_model(directory), stored_specs(directory)
    names = map_names(bare, specs)
    check_fit(bare, names, specs, directory)
    if attention == IMPLEMENTATION:
        register_attention()
    elif attention == "sdpa":
        attention = generation_attention(bare)
    layers, settings = [], None
    if quant != "none":
        quantize.require_library(quant)
        layers, settings = (
            quantize.quantised_layers(bare),
            quantize.quantization_config(bare, quant, compute=dtype, storage=storage),
        )
    target = torch.device(device)
    place = torch.device("cuda", torch.cuda.current_device()) if target == torch.device("cuda") else target
    try:
        model, said = type(bare).from_pretrained(
            directory,
            config=bare.config,
            dtype=torch.bfloat16 if settings else dtype,
            quantization_config=settings,
            attn_implementation=attention,
            device_map={"": place},
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"The model in {directory} can't be loaded: {error}") from error
    if missing := sorted(said["missing_keys"]):
        raise DataError(
            f"The model in {directory} can't be loaded: it lacks {len(missing)} tensors, first {missing[0]}."
        )
    if settings:
        quantize.prepare_for_training(model, layers, quant, compute=dtype)
    model.config.use_cache = attention != IMPLEMENTATION
    if attention == IMPLEMENTATION:
        unfold_positions(model)
    return model.eval(), names


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the weights the values they have in `dtype`, in place, but for those that their family keeps in
    fp32 next to bf16.
    """
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, parameter in model.named_parameters():
        if not any(part in name for part in kept):
            parameter.data.copy_(parameter.data.to(dtype))
