"""A model from a directory, ready to train or to measure, with or without adapters."""

import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from tuner.cpu import has_bf16
from tuner.driver import absence, trouble
from tuner.errors import ConfigError, DataError
from tuner.gpus import VARIABLE, hidden
from tuner.kernels import attention as seam
from tuner.models.merge import overlay

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def resolve_device(wish: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Raises ConfigError when a GPU is present and can't be used: that is never a silent CPU run.

    A CUDA_VISIBLE_DEVICES that hides every card is a person's wish for the processor.
    """
    if wish == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as said:  # in a warning, torch says why CUDA does not start
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return torch.device("cuda")
    if hidden(os.environ):
        reason = f"{VARIABLE}={os.environ[VARIABLE]!r} hides every card"
    elif why := trouble(os.environ, str(said[0].message) if said else "it does not say why"):
        raise ConfigError(f"machine.device={wish} finds a GPU that can't be used. {why.paragraph}")
    else:
        reason = absence()
    if wish == "auto":
        return torch.device("cpu")
    raise ConfigError(f"machine.device={wish} needs an NVIDIA GPU, and {reason}. Mend that, or train on the processor with machine=cpu.")


def compute_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """The dtype of the matrix products for algo.precision.

    A processor without bf16 instructions multiplies bf16 matrices ten times slower than fp32 ones. There, bf16 means weights rounded
    to bf16 and arithmetic in fp32: a difference of rounding, which is neutral.
    """
    if precision == "bf16" and torch.device(device).type == "cpu" and not has_bf16():
        return torch.float32
    return DTYPES[precision]


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = seam.NAME,
    rounded: torch.dtype | None = None,
) -> PreTrainedModel:
    """The causal language model in a Hugging Face directory, in eval mode, with weights in `dtype` on `device`.

    attention   "tuner" for packed rows without a cache, "sdpa" to generate
    rounded     weights take this dtype's values first: torch.bfloat16 with dtype=torch.float32 computes in fp32 on bf16 weights

    Code in the directory never runs. Raises DataError when it holds no model that transformers knows.
    """
    logging.disable_progress_bar()
    if attention == seam.NAME:
        seam.register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise DataError(f"The model in {directory} can't be loaded: {error}") from error
    return _ready(model, dtype, device, attention, rounded)


def load_tuned(
    base: Path,
    adapter: Path | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = seam.NAME,
    rounded: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model that `load_model` gives for the merged directory of `base` and `adapter`, bit for bit, without that directory.

    The weights take the bf16 values that merging writes, whatever `dtype` is. Without an adapter it is the model in `base` as it lies there.
    Raises DataError like `load_model`, and StageError when the adapter doesn't fit the base.
    """
    if adapter is None:
        return load_model(base, dtype=dtype, device=device, attention=attention, rounded=rounded)
    logging.disable_progress_bar()
    if attention == seam.NAME:
        seam.register()
    specs, value = overlay(base, adapter)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model = type(skeleton).from_pretrained(
            None, config=skeleton.config, state_dict={name: value(name) for name in specs}, dtype=dtype, attn_implementation=attention
        )
    except (OSError, ValueError) as error:
        raise DataError(f"The model in {base} can't be loaded: {error}") from error
    return _ready(model, dtype, device, attention, rounded)


def _ready(model: PreTrainedModel, dtype: torch.dtype, device: torch.device | str, attention: str, rounded: torch.dtype | None) -> PreTrainedModel:
    if rounded is not None and rounded != dtype:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(rounded).to(dtype)
    model.config.use_cache = attention != seam.NAME
    return model.to(device).eval()


def add_lora(model: PreTrainedModel, *, r: int, alpha: float, dropout: float, targets: str | tuple[str, ...], seed: int) -> PeftModel:
    """PEFT's LoRA around the model: only A and B train, in fp32. Their first values depend on `seed`, and on the device not at all;
    PEFT rounds them to the dtype of the base.

    Raises ConfigError when no module of the model is called as `targets` says.
    """
    names: Any = targets if targets == "all-linear" else [targets] if isinstance(targets, str) else list(targets)
    torch.manual_seed(seed)
    whole = int(alpha) if float(alpha).is_integer() else alpha  # 32, as other tools write it, not 32.0
    config = LoraConfig(r=r, lora_alpha=whole, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT reads a renamed property
            return get_peft_model(model, config)
    except ValueError as error:
        linears = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)})
        raise ConfigError(f"algo.targets={targets} fits no module of this model ({error}). Its linear layers are {', '.join(linears)}") from error


def load_adapter(model: PeftModel, directory: Path) -> None:
    """Give the adapters of `model` the values that an adapter in `directory` has. Raises ConfigError when they are not made alike."""
    weights, own = load_file(directory / "adapter_model.safetensors"), get_peft_model_state_dict(model, save_embedding_layers=False)
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ConfigError(
            "The adapter that algo.init=continue goes on from has other layers or another rank than algo.r and algo.targets say: "
            "give them the values that its adapter_config.json has, or train a new one with algo.init=on_merged."
        )
    set_peft_model_state_dict(model, weights)


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """What PEFT writes as adapter_config.json, the same on every run: sets are sorted, and no directory is named."""
    settings = model.peft_config["default"].to_dict() | {"base_model_name_or_path": "", "inference_mode": True}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(settings.items())}


def trainable(model: torch.nn.Module) -> int:
    """How many numbers train."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
