"""machine.kernels on a run's own model: which fused ops it gets, and whether its layers are compiled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tuner.config.view import View
from tuner.data.packs import Pack, Packs
from tuner.data.sampler import Order, micro_batches_of_rank
from tuner.errors import ConfigError
from tuner.kernels import apply, attention, compile
from tuner.models.attention_needs import attention_needs
from tuner.models.stateful_layers import carried_state
from tuner.train.batch import collate
from tuner.train.batch_shape import BatchShape
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.preflight.memory_probe import hardest_micro_batches

COMPILED_ATTENTION = next(name for name, backend in attention.BACKENDS.items() if backend.compiles)
SHARE = 0.3
"""of a GPU's peak: what a step that is not compiled reaches"""
PEAK = 1e14
"""floating-point operations a second of a GPU that is not known"""


def fuse(machine: View, model: Any, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Give the model its fused ops; returns the facts, which are none on a CPU. Raises ConfigError where
    machine.kernels asks for them and they can't be had.
    """
    if device.type != "cuda":
        return {}
    if machine.kernels == "plain":
        return {"kernels": {}}
    if why := apply.trouble(device):
        if machine.kernels != "auto":
            raise ConfigError(
                f"machine.kernels={machine.kernels} needs Triton, which can't be used here: {why}. Leave "
                "machine.kernels=auto, which then trains without it, more slowly."
            )
        say(f"kernels: PEFT's and PyTorch's own, since Triton can't be used here: {why}")
        return {"kernels": {}}
    applied = apply.apply(model)
    say(f"kernels: {applied}")
    return {"kernels": dict(applied.fused)}


def compile_where_it_pays(
    config: View,
    engine: Engine,
    model: Any,
    packs: Packs,
    order: Order,
    *,
    world: World,
    micro_batch: int,
    done: int,
    began: Mapping[str, Any],
    facts: Mapping[str, Any],
    flops: Callable[[Sequence[Pack]], float],
    peak: float | None,
    compute: torch.dtype,
    say: Callable[[str], None],
) -> BatchShape | None:
    """Compile the model's layers for the rest of a run, before a saved step is loaded. What rows are filled
    to then; None where layers stay as they are.

    done    steps that are done
    began   the facts of the run that goes on, which keeps what it had
    flops   the floating-point operations of a step on some packs, `peak` those that the GPU does a second

    Raises ConfigError where machine.kernels=compiled and they can't be.
    """
    wish = config.machine.kernels
    if wish not in ("auto", "compiled") or world.device.type != "cuda":
        return None
    why = obstacle(config, model, facts, compute, world)
    if wish == "auto" and began.get("compiled") is False:
        return None
    if why is None and wish == "auto" and not began.get("compiled"):
        step = [packs[i] for i in order.at(done)] if done < order.steps else []
        seconds = flops(step) / world.size / (SHARE * (peak or PEAK))
        if not compile.pays(order.steps - done, seconds):
            return None
    if why is None:
        shape = BatchShape.of(packs, config.data.length, micro_batch)
        layers = compile.decoder_layers(model)
        batches = hardest(packs, order, shape, world)
        attention.use_backend(COMPILED_ATTENTION)
        say(f"compiling {len(layers)} layers for {order.steps - done} steps; the first time takes longest")
        why = compile.compile_layers(
            layers,
            lambda: [engine.forward_backward([batch], len(batch.targets_M)) for batch in batches],
        )
        engine.reset()
        if why is None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(world.device)  # layers as they were took more
            return shape
        attention.use_backend(facts["attention"])
    if wish == "compiled":
        raise ConfigError(
            f"machine.kernels=compiled can't be had here: {why}. Leave machine.kernels=auto, which then "
            "trains without it."
        )
    say(f"layers are not compiled: {why}")
    return None


def obstacle(
    config: View, model: Any, facts: Mapping[str, Any], compute: torch.dtype, world: World
) -> str | None:
    """Why the layers of this run are not compiled, if so."""
    algo, machine = config.algo, config.machine
    if not compile.decoder_layers(model):
        return "this family's compiled layers are not tested yet"
    if facts["engine"] != "torch" or world.size > 1:
        return "several processes or DeepSpeed"
    if machine.deterministic:
        return "machine.deterministic=true, and a compiler chooses some kernels by the clock"
    if algo.dropout or algo.neftune:
        return "algo.dropout and algo.neftune draw their numbers pack by pack"
    if carried_state(model) is not None:
        return "its layers carry a state from token to token"
    if compute != torch.bfloat16:
        return "arithmetic in fp32"
    if machine.attention not in ("auto", COMPILED_ATTENTION):
        return f"machine.attention={machine.attention}"
    return attention.BACKENDS[COMPILED_ATTENTION].trouble(
        attention_needs(model, dtype=compute, device=world.device)
    )


def hardest(packs: Packs, order: Order, shape: BatchShape, world: World) -> list[Any]:
    """For each size that rows of a step are filled to, the row with most tokens."""
    sizes = [(len(pack.ids), int(pack.trained.sum())) for pack in packs]
    parts = micro_batches_of_rank(range(order.per_step), shape.micro_batch, world.rank, world.size)
    counts = sorted({min(len(part), len(packs)) for part in parts if part}, reverse=True)
    chosen = [hardest_micro_batches(sizes, count)[0] for count in counts]
    return [shape.fill(collate([packs[i] for i in one], indices=one)) for one in chosen]
