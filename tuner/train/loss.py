"""The loss of a batch, and the logits that it is computed from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tuner.kernels.apply import WaitingHead, hidden_states, output_head
from tuner.kernels.attention import matmul_dtype
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
    logits_1MV: Tensor = model(**model_inputs(batch)).logits
    return _kept(logits_1MV, batch)


def summed_loss(model: torch.nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the targets of -log p(target | the document so far), in nats: a scalar in fp32.

    label_smoothing  ε: of each target, 1 - ε of that and ε of the mean of -log p over the whole vocabulary
                     (arXiv:1512.00567, section 7)

    Without targets it is a zero that has a gradient, of zeros.
    """
    head = output_head(model)
    if isinstance(head, WaitingHead) and matmul_dtype(head.weight) == torch.bfloat16:
        from tuner.kernels.fused.linear_cross_entropy import linear_cross_entropy

        states_1MD = hidden_states(model, head, model_inputs(batch))
        if states_1MD is not None:
            states_MD, weight_VD = _kept(states_1MD, batch).bfloat16(), head.weight.bfloat16()
            return linear_cross_entropy(states_MD, weight_VD, batch.targets_M, label_smoothing)
    logits_MV = logits_at(model, batch).float()
    return cross_entropy(logits_MV, batch.targets_M, reduction="sum", label_smoothing=label_smoothing)


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What the model's forward pass is called with. The documents are announced to attention."""
    announce_documents(batch.positions_1N, batch.borders)
    inputs: dict[str, Any] = {
        "input_ids": batch.ids_1N,
        "position_ids": batch.positions_1N,
        "attention_mask": None,
        "use_cache": False,
        "logits_to_keep": batch.keep_M,
    }
    if batch.offsets_D is not None:  # transformers hands them on to attention under these names
        torch._dynamo.maybe_mark_dynamic(batch.offsets_D, 0)  # one graph for any number of documents
        inputs |= {"cu_seq_lens_q": batch.offsets_D, "max_length_q": batch.longest}
    return inputs


def _kept(found_1MV: Tensor, batch: Batch) -> Tensor:
    if found_1MV.shape[1] != batch.keep_M.shape[0]:  # a family whose forward ignores logits_to_keep
        return found_1MV[0, batch.keep_M]
    return found_1MV[0]
