"""The run's kernels on and off, on its own rows: fused ops and compiled layers give the gradient that
PyTorch's and PEFT's own modules give.

Not covered: several processes, whose layers are not compiled and whose fused ops are those of one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from tuner.data.packs import Pack, Packs
from tuner.kernels.apply import unfused
from tuner.train.batch import collate, count_targets
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.fixed_rows import FixedRows
from tuner.train.preflight.gradients import gradient_difference, sampled_gradient
from tuner.train.preflight.tolerance import GRADIENT, agree
from tuner.train.recompute import layers_to_recompute, set_recompute

LEARNT = 0.02
"""the standard deviation of B of an adapter that has learnt something"""


def prove_kernels(
    engine: Engine,
    model: nn.Module,
    packs: Sequence[Pack] | Packs,
    world: World,
    *,
    micro_batch: int,
    rows: FixedRows | None,
    new_adapter: bool,
    compute: torch.dtype,
    where: Callable[[Pack], list[str]],
) -> dict[str, float]:
    """The relative difference of the gradients of a micro batch, as the run computes it and pack by pack
    without kernels, under `kernels`; nothing where there is no memory to compute it without them. Leaves
    the engine without gradients, and layers that keep only their inputs.

    rows         where layers are compiled
    new_adapter  whether B is 0: then the product of B and A, which fused ops add to the weight, is nothing,
                 so B is random numbers meanwhile

    Raises StageError where the difference is more than rounding.
    """
    some = [packs[i] for i in range(min(micro_batch, len(packs)))]
    targets, row = count_targets(some), collate(some, indices=range(len(some)))
    compiled = rows if rows is not None and rows.compiled else None
    with ExitStack() as stack:
        stack.callback(engine.reset)
        if new_adapter:
            stack.enter_context(learnt(model))
        found = sampled_gradient(
            engine, [compiled.shape(micro_batch).fill(row) if compiled else row], targets
        )
        set_recompute(model, len(layers_to_recompute(model)))
        if compiled:
            stack.enter_context(compiled.aside())
        stack.enter_context(unfused(model))
        try:
            singly = [collate([pack], indices=[i]) for i, pack in enumerate(some)]
            plain = sampled_gradient(engine, singly, targets)
        except torch.OutOfMemoryError:
            return {}
    difference, worst = gradient_difference(plain, found)
    rows_of = ", ".join(row for pack in some[:1] for row in where(pack)[:4])
    agree("kernels", difference, GRADIENT[compute], lambda: f"{rows_of}, …; most of it in {worst}", world)
    return {"kernels": difference}


@contextmanager
def learnt(model: nn.Module) -> Iterator[None]:
    """In here B of each adapter has random numbers, always the same ones."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [b.weight for layer in layers for b in layer.lora_B.values()]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for number, weight in enumerate(weights):
            generator = torch.Generator(weight.device).manual_seed(number)
            weight.normal_(std=LEARNT, generator=generator)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
