"""The loss of supervised fine-tuning."""

import torch
from torch.nn.functional import cross_entropy

from tuner.train.batch import Batch


def summed_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum over the targets of -log p(target | the document so far), in nats: a scalar in fp32.

    A sum, so that it adds up over micro batches and devices; the caller divides by the targets of the whole step.
    The output head runs at the M positions that predict a target, through the model's own forward, which may scale or cap logits.
    """
    logits_MV = model(
        input_ids=batch.ids_1N,
        position_ids=batch.positions_1N,
        attention_mask=None,
        use_cache=False,
        logits_to_keep=batch.keep_M,
    ).logits[0]
    if logits_MV.shape[0] != batch.keep_M.shape[0]:  # a family whose forward ignores logits_to_keep
        logits_MV = logits_MV[batch.keep_M]
    return cross_entropy(logits_MV.float(), batch.targets_M, reduction="sum")
