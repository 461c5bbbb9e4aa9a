"""The loss on packs kept out of training: one computation for the curve of a run, for its report and for
benchmarks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tuner.data.packs import Pack
from tuner.errors import StageError
from tuner.models.nonfinite import explain_nonfinite
from tuner.models.stateful_layers import carried_state
from tuner.train.batch import Batch, collate, micro_batches, split_documents
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.loss import Loss, summed_loss


def sum_losses(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    device: torch.device | str,
    check: Callable[[float, Batch], None] = lambda _loss, _batch: None,
) -> tuple[float, int]:
    """The summed loss over all batches together, in nats, and the number of their targets. `model` is in eval
    mode and records no gradients; `check` sees the loss of each batch.
    """
    total, targets = 0.0, 0
    for batch in batches:
        here = batch.to(device)
        found = loss(model, here).item()
        check(found, here)
        total += found
        targets += len(here.targets_M)
    return total, targets


def measure_batches(engine: Engine, batches: Iterable[Batch], loss: Loss) -> tuple[float, int]:
    """The same with an engine's model, on this process's batches. Changes nothing."""
    with engine.evaluating() as model:
        return sum_losses(model, batches, loss, engine.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What is measured while training, the same packs each time."""

    rows: Sequence[Pack]
    """packs, or single documents for a model that carries a state from token to token"""
    loss: Loss

    def measure(self, engine: Engine, world: World, shared: int = 1) -> float:
        """The loss per target over all rows together, which the processes share; `shared` of them share each
        row.
        """
        batches = micro_batches(self.rows, 1, world, step=0, shared=shared)
        loss, targets = world.sum(measure_batches(engine, batches, self.loss))
        return loss / max(1, targets)


@torch.inference_mode()
def held_out_loss(
    model: Any,
    packs: Iterable[Pack],
    device: torch.device | str,
    files: Sequence[Path] = (),
    loss: Loss = summed_loss,
) -> tuple[float | None, int]:
    """The loss per token over all packs together (not a mean of means), and the number of tokens.

    `model` is in eval mode and attends within documents. Raises StageError when the loss is not finite, with
    what it comes from; `files` are those of its base's weights.
    """

    def check(found: float, batch: Batch) -> None:
        if not math.isfinite(found):
            why = explain_nonfinite(model, files, lambda: loss(model, batch))
            raise StageError(
                "The held-out loss is not a finite number. "
                f"{why or 'The model or its arithmetic is broken: try algo.precision=fp32.'}"
            )

    apart = carried_state(model) is not None  # from one document into the next
    rows = (row for pack in packs for row in (split_documents(pack) if apart else (pack,)))
    batches = (collate([row]) for row in rows)
    total, tokens = sum_losses(model, (one for one in batches if len(one.targets_M)), loss, device, check)
    return (total / tokens if tokens else None), tokens
