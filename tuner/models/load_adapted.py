"""A base in 4 or 8 bits that answers with its adapter beside it, as it was trained, in the memory that the
bits take: `load_tuned` makes one matrix in 16 bits of both.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tuner.models.load import load_model


def load_adapted(
    base: Path, adapter: Path, *, dtype: torch.dtype, device: torch.device | str, quant: str
) -> PreTrainedModel:
    """The model in `base`, quantised as `quant` says, with the layers of PEFT that the directory `adapter`
    describes; in eval mode, with an attention that generates.

    dtype   of the matmuls; A, B and rows of new tokens stay in fp32
    """
    model = load_model(base, dtype=dtype, device=device, attention="sdpa", quant=quant)
    with warnings.catch_warnings():
        # an adapter on one of two tied matrices is on that one only, here as in training
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        adapted: Any = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    return cast(PreTrainedModel, adapted.get_base_model().eval())
