"""The loss of a batch, and the logits that it is computed from."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tuner.kernels.packed_documents import announce_documents
from tuner.train.batch import Batch

Loss = Callable[[torch.nn.Module, Batch], Tensor]
"""of a model on a batch: a scalar in fp32, summed over the targets, so that it adds up over micro batches and
processes; the caller divides by the targets of the whole step
"""


def logits_at(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The logits [M, V] at the M positions that predict a target, as the model computes them.

    The output head runs at these positions only, through the model's own forward, which may scale or cap
    logits.
    """
    announce_documents(batch.positions_1N, batch.borders)
    logits_MV: Tensor = model(
        input_ids=batch.ids_1N,
        position_ids=batch.positions_1N,
        attention_mask=None,
        use_cache=False,
        logits_to_keep=batch.keep_M,
    ).logits[0]
    if logits_MV.shape[0] != batch.keep_M.shape[0]:  # a family whose forward ignores logits_to_keep
        logits_MV = logits_MV[batch.keep_M]
    return logits_MV


def summed_loss(model: torch.nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the targets of -log p(target | the document so far), in nats: a scalar in fp32.

    label_smoothing  ε: of each target, 1 - ε of that and ε of the mean of -log p over the whole vocabulary
                     (arXiv:1512.00567, section 7)

    Without targets it is a zero that has a gradient, of zeros.
    """
    return cross_entropy(
        logits_at(model, batch).float(), batch.targets_M, reduction="sum", label_smoothing=label_smoothing
    )
