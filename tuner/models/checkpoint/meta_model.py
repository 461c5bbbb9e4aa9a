"""A model without its weights, on the meta device: what config.json says, before anything is allocated or
read.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from tuner.errors import DataError
from tuner.kernels import alibi
from tuner.models.checkpoint.files import weight_files
from tuner.models.checkpoint.safetensors import Checkpoint, Spec


def meta_model(directory: Path) -> PreTrainedModel:
    """The model that config.json in `directory` describes, every parameter on the meta device.

    A family that reads images too is built whole, since its checkpoint holds all of it. Code in the directory
    never runs, and nothing is asked on standard input. Raises DataError when transformers has no class for
    it, or when no model can be built from what the config says.
    """
    if (directory / "adapter_config.json").is_file() and (directory / "config.json").is_file():
        raise DataError(
            f"{directory} holds a model and an adapter (adapter_config.json), and which of them is meant "
            "can't be told: keep them apart."
        )
    alibi.register_alibi()
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        # Another file as the weights, or a kernel from a hub as the attention: no config gets to name either.
        config.__dict__.pop("transformers_weights", None)
        # Rows are never padded here, and an embedding gives the row of its padding token no gradient: in some
        # families that token ends an answer.
        for part in (config, config.get_text_config()):
            part.pad_token_id = None
        with torch.device("meta"):
            return _auto(config).from_config(config, trust_remote_code=False, attn_implementation="eager")
    except DataError:
        raise
    # whatever a config says ends somewhere in the code of its family, with any exception there is
    except Exception as error:
        said = (
            str(error)
            if isinstance(error, (OSError, ValueError))
            else f"no model can be built from its config.json ({type(error).__name__}: {error})"
        )
        raise DataError(f"The model in {directory} can't be loaded: {said}") from error


def _auto(config: Any) -> Any:
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ValueError(
        f"its model_type {config.model_type} is not a language model; model.repo or model.path should name "
        "one that continues text"
    )


def stored_specs(directory: Path) -> dict[str, Spec]:
    """The tensors of the checkpoint in `directory`, from the files' headers."""
    return Checkpoint(weight_files(directory)).specs
