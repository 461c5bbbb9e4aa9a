"""The output head and the cross-entropy of its logits together, some rows at a time: the logits of all rows
are never held.

Of a chunk of rows the logits are made, and their loss and gradient taken in place, which is multiplied back
onto the hidden states at once; the backward pass has only to scale that (arXiv:2410.10989, section 3.2).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK = 1 << 28
"""bytes of logits at a time, about; four times that where the head trains, since its gradient, in fp32, is
read and written once for each chunk
"""
COLUMNS, WARPS = 4096, 16
"""of a row, which a program of so many warps reads at a time"""


def reference(
    hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The same in plain PyTorch."""
    counted = targets_M >= 0
    logits_MV = (hidden_MD @ weight_VD.t()).float()[counted]
    return cross_entropy(logits_MV, targets_M[counted], reduction="sum", label_smoothing=label_smoothing)


def linear_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Σ over M rows of -log softmax(hidden weight')[target], in nats: an fp32 scalar. Both are bf16.

    Rows whose target is negative only fill up: they count nothing and get no gradient.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden_MD, weight_VD, targets_M, label_smoothing)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, label_smoothing: float
    ) -> Tensor:
        vocabulary = weight_VD.shape[0]
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        chunk = max(128, CHUNK * (4 if for_weight else 1) // (2 * vocabulary) // 128 * 128)
        losses_M = torch.empty(len(hidden_MD), dtype=torch.float32, device=hidden_MD.device)
        d_hidden_MD = torch.empty_like(hidden_MD) if for_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if for_weight else None
        for begin in range(0, len(hidden_MD), chunk):
            part = slice(begin, begin + chunk)
            logits_CV = hidden_MD[part] @ weight_VD.t()
            _loss_and_gradient[(len(logits_CV),)](
                logits_CV,
                targets_M[part],
                losses_M[part],
                vocabulary,
                label_smoothing,
                GRADIENT=for_hidden or for_weight,
                COLUMNS=COLUMNS,
                num_warps=WARPS,
            )
            if d_hidden_MD is not None:
                d_hidden_MD[part] = logits_CV @ weight_VD
            if d_weight_VD is not None:
                d_weight_VD += logits_CV.t() @ hidden_MD[part]
        ctx.save_for_backward(d_hidden_MD, d_weight_VD)
        ctx.dtype = weight_VD.dtype
        return losses_M.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        d_hidden_MD, d_weight_VD = ctx.saved_tensors
        d_hidden = None if d_hidden_MD is None else d_hidden_MD * scale.to(d_hidden_MD.dtype)
        d_weight = None if d_weight_VD is None else (d_weight_VD * scale).to(ctx.dtype)
        return d_hidden, d_weight, None, None


@triton.jit
def _loss_and_gradient(
    logits, targets, losses, vocabulary, smoothing, GRADIENT: tl.constexpr, COLUMNS: tl.constexpr
):
    """One row: its loss, and over its logits their gradient, softmax - (1 - ε) one-hot - ε / V."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    target = tl.load(targets + row)
    counts = (target >= 0).to(tl.float32)
    chosen = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    highest = float("-inf")
    total = 0.0
    plain = 0.0
    for begin in range(0, vocabulary, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        x = tl.load(logits + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher))
        plain += tl.sum(tl.where(column < vocabulary, x, 0.0))
        highest = higher
    entropy = highest + tl.log(total)
    loss = entropy - (1 - smoothing) * chosen - smoothing * (plain / vocabulary)
    tl.store(losses + row, counts * loss)
    if GRADIENT:
        tl.debug_barrier()  # the whole program has read the target's logit before one writes over it
        for begin in range(0, vocabulary, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            x = tl.load(logits + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x - entropy) - smoothing / vocabulary
            gradient = tl.where(column == target, gradient - (1 - smoothing), gradient)
            tl.store(logits + column, (counts * gradient).to(tl.bfloat16), mask=column < vocabulary)
