"""machine.kernels on a run's own model: which fused ops it gets, and whether its layers are compiled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tuner.config.view import View
from tuner.data.packs import Pack, Packs
from tuner.data.sampler import Order
from tuner.errors import ConfigError
from tuner.estimate.recompute import Recompute
from tuner.kernels import apply, attention, compiled_layers
from tuner.kernels.compile_policy import capturing_pays, compiling_pays, why_not_compiled
from tuner.kernels.compiled_layers import CompiledLayers
from tuner.models.attention_needs import attention_needs
from tuner.models.load import compute_dtype
from tuner.models.stateful_layers import carried_state
from tuner.progress import working
from tuner.train.auto_settings import attention_facts
from tuner.train.batch import Batch, micro_batches
from tuner.train.batch_shape import BatchShape
from tuner.train.distributed import World
from tuner.train.engine import Engine, TorchEngine
from tuner.train.fixed_rows import FixedRows, without_compiling

SHARE = 0.3
"""of a GPU's peak: what a step that is not compiled reaches"""
AHEAD = 1 << 20
"""tokens of the steps to come that are looked at for shapes of rows"""
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


def fixed_rows(
    config: View,
    model: Any,
    packs: Packs,
    order: Order,
    *,
    world: World,
    done: int,
    began: Mapping[str, Any],
    facts: dict[str, Any],
    flops: tuple[Callable[[Sequence[Pack]], float], float | None],
    say: Callable[[str], None],
) -> FixedRows | None:
    """The rows of a run whose layers are to be compiled for its rest, or whose passes may be captured, since
    that pays; None where rows stay as they are. Writes down which it will be among the facts of a GPU.

    done    steps that are done
    began   the facts of the run that goes on, which keeps what it had
    flops   the floating-point operations of a step on some packs, and those that the GPU does a second

    Raises ConfigError where machine.kernels=compiled and layers can't be.
    """
    if world.device.type != "cuda":
        return None
    facts |= {"compiled": False, "captured": False}
    wish, left = config.machine.kernels, order.steps - done
    if wish not in ("auto", "compiled") or not left:
        return None
    layers, spent = compiled_layers.decoder_layers(model), seconds(packs, order, flops)
    compiles = wish == "compiled" or began.get("compiled", compiling_pays(left, spent))
    captures = began.get("captured", capturing_pays(len(layers), spent / order.per_step))
    if not compiles and not captures:
        return None
    why, backend = obstacle(config, model, facts, world), None
    if why is None:
        compute = compute_dtype(config.algo.precision, world.device)
        needs = attention_needs(model, dtype=compute, device=world.device)
        backend, why = attention.choose_for_compiled(config.machine.attention, needs)
    if backend is None:
        without_compiling(wish, why, say)
        return None
    if compiles:
        say(f"compiling {len(layers)} layers for {left} steps; the first time takes longest")
    facts["compiled"] = compiles
    return FixedRows(
        CompiledLayers(layers),
        packs,
        config.data.length,
        backend=backend,
        usual=facts["attention"],
        wish=wish,
        compiled=compiles,
        seconds=spent,
        say=say,
    )


def prepare_rows(
    rows: FixedRows | None,
    engine: Engine,
    packs: Packs,
    order: Order,
    *,
    world: World,
    micro_batch: int,
    done: int,
    began: Mapping[str, Any],
    facts: dict[str, Any],
    say: Callable[[str], None],
) -> BatchShape | None:
    """Compile the layers for each shape of a row, and capture the passes over rows as CUDA graphs where that
    pays; before a saved step is loaded. What rows are filled to then; None where they stay as they are.
    """
    if rows is None:
        return None
    row = rows.seconds * micro_batch / order.per_step
    captures = began.get("captured", capturing_pays(len(rows.layers.layers), row))
    shape = rows.shape(micro_batch, targets=captures)
    batches = distinct_rows(packs, order, shape, world, done)
    if rows.compiled:
        recompute = Recompute.read(facts["recompute"], len(rows.layers.layers), compiled=True)
        with working("compiling the layers", say):
            # read, since a kernel's error comes when the host waits for it
            rows.run(
                lambda: [engine.forward_backward([one], len(one.targets_M)).tolist() for one in batches],
                recompute,
            )
        engine.reset()
    facts["compiled"] = rows.compiled
    if captures:
        assert isinstance(engine, TorchEngine)
        attention.use_backend(rows.backend)
        why = engine.capture(batches)
        say(
            "passes over rows are captured as CUDA graphs"
            if why is None
            else f"passes over rows are not captured as CUDA graphs: {why}"
        )
        facts["captured"] = why is None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(world.device)  # layers as they were took more
    if not facts["compiled"] and not facts["captured"]:
        attention.use_backend(facts["attention"])
        return None
    facts |= attention_facts(rows.backend)
    return shape


def seconds(
    packs: Packs, order: Order, flops: tuple[Callable[[Sequence[Pack]], float], float | None]
) -> float:
    """Of the GPU for a step whose layers are not compiled, about."""
    count, peak = flops
    return count([packs[i] for i in order.at(0)]) / (SHARE * (peak or PEAK))


def obstacle(config: View, model: Any, facts: Mapping[str, Any], world: World) -> str | None:
    """Why the layers of this run are not compiled, if so."""
    if not compiled_layers.decoder_layers(model):
        return "this family's compiled layers are not tested yet"
    if carried_state(model) is not None:
        return "its layers carry a state from token to token"
    return why_not_compiled(config.algo, engine=facts["engine"], processes=world.size)


def distinct_rows(packs: Packs, order: Order, shape: BatchShape, world: World, done: int) -> list[Batch]:
    """A row of each shape that there is in the steps after `done`, as far ahead as AHEAD."""
    found: dict[tuple[int, ...], Batch] = {}
    for step in range(done, min(order.steps, done + max(1, AHEAD // (order.per_step * shape.tokens)))):
        for batch in micro_batches([packs[i] for i in order.at(step)], shape.micro_batch, world, step):
            filled = shape.fill(batch)
            targets = len(filled.targets_M) if shape.targets else 0
            found.setdefault((filled.ids_1N.shape[1], targets), filled)
    return [*found.values()]
