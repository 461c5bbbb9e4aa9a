"""A GGUF file (quantised weights and tokenizer in one) rewritten once as a bf16 checkpoint in the Hugging
Face layout.

transformers knows how each architecture's tensors are named and permuted in GGUF; its result is what this
module writes down. The values stay those of the quantisation: nothing is gained by the wider type but that
every tool can read it.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.utils import logging

from tuner.errors import DataError, in_one_line
from tuner.hardware.limits import reading
from tuner.models.checkpoint.config_files import read_json_object, write_json_object
from tuner.models.checkpoint.files import SETTINGS, TEXT
from tuner.models.checkpoint.safetensors import DTYPES, Spec
from tuner.models.checkpoint.write_safetensors import write_checkpoint

MAGIC = b"GGUF"


def check_magic(path: Path) -> None:
    """Raises DataError for a file that doesn't start as GGUF files do."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    if head != MAGIC:
        mend = "It is a Git LFS pointer; fetch it with: git lfs pull" if head == b"vers" else "Get it again."
        raise DataError(f"{path} starts with {head!r} where a GGUF file starts with {MAGIC!r}. {mend}")


def convert_gguf(path: Path, out: Path) -> None:
    """Write config, tokenizer, chat template and bf16 weights of the GGUF file `path` to `out`. The same file
    gives the same bytes.

    Takes about twice the bf16 model in memory. Raises DataError for an architecture that transformers can't
    read from GGUF.
    """
    check_magic(path)
    logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with reading(str(path)):
            GGUFReader(path)  # all but the tensors' bytes; what follows takes the memory of the whole model
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path.parent,
            **source,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file fails as any code can
        raise DataError(
            f"{path.name} can't be read by the installed transformers ({in_one_line(error)}). If it is "
            "whole, use the model's safetensors instead."
        ) from error
    _refuse_drawn(path, loading)
    with TemporaryDirectory(dir=out) as scratch:
        tokenizer.save_pretrained(scratch)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(scratch)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(scratch)
        for name in (*SETTINGS, *TEXT):
            if (found := Path(scratch) / name).is_file():
                _tidy(found, out / name)
    write_state(model, out)


def _refuse_drawn(path: Path, loading: Mapping[str, Any]) -> None:
    """Raise DataError where transformers has drawn weights at random, since the file has none for them, or
    others.
    """
    absent = sorted(loading["missing_keys"])
    if drawn := absent or sorted(str(found[0]) for found in loading["mismatched_keys"]):
        raise DataError(
            f"{path.name} has no weights{'' if absent else ' of the right shape'} for {len(drawn)} of the "
            f"model's tensors, {drawn[0]} among them: it is damaged, or of a form that the installed "
            "transformers does not know. Get it again, or use the model's safetensors instead."
        )


def write_state(model: PreTrainedModel, out: Path) -> None:
    """A model's weights as a checkpoint, a tied weight once."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    specs = [
        Spec(name=name, dtype=codes[tensor.dtype], shape=tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    write_checkpoint(out, specs, tensors.__getitem__)


def _tidy(source: Path, target: Path) -> None:
    if source.name.endswith("config.json"):
        write_json_object(target, read_json_object(source))
    else:
        target.write_bytes(source.read_bytes())
