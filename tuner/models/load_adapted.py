"""A base in 4 or 8 bits that answers with its adapter beside it, as it was trained, in the memory that the
bits take: `load_tuned` makes one matrix in 16 bits of both.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tuner.models.load import PRECISIONS, compute_dtype, load_model, load_tuned


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


def load_result(
    base: Path,
    adapter: Path | None,
    *,
    precision: str,
    quant: str,
    kept: bool,
    device: torch.device | str,
) -> PreTrainedModel:
    """What a run trained, ready to answer: the model that was evaluated, or the one that was trained, with a
    base in 4 or 8 bits.

    precision   algo.precision
    quant       how the base was held in training
    kept        whether it stays so, with the adapter beside it
    """
    dtype = compute_dtype(precision, device)
    if adapter and kept:
        return load_adapted(base, adapter, dtype=dtype, device=device, quant=quant)
    return load_tuned(
        base,
        adapter,
        dtype=dtype,
        device=device,
        attention="sdpa",
        rounded=PRECISIONS[precision],
        quant=quant if adapter else "none",
    )
