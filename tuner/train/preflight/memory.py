"""Before step 0: the hardest micro batch runs forward, backward and a step that moves nothing, and a save.
What fits is measured, not believed.

`machine.micro_batch=auto` and `machine.recompute=auto` are settled here: the fastest that fits. With several
processes all do the same, and what one of them finds counts for all.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuner.data.packs import Pack, Packs
from tuner.train.checkpoints.save import Saver
from tuner.train.distributed import World
from tuner.train.engine import Engine, State
from tuner.train.fixed_rows import FixedRows
from tuner.train.preflight.memory_probe import (
    GIB,
    MemoryEstimate,
    MemoryProbe,
    ProbeRequest,
    available_gpu_memory,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """What was settled and measured."""

    micro_batch: int
    recompute: str | int
    """as machine.recompute says it"""
    tokens: int
    """of the longest micro batch"""
    targets: int
    """of the one that has most"""
    seconds: float
    """of the last step"""
    tokens_per_second: float
    """of all processes together, in that step"""
    reserved: int | None
    """bytes that PyTorch held at the peak, on the fullest GPU; None on the CPU"""
    expected: float | None
    """what was estimated for that; None where nothing is known of the model's family"""
    room: int | None
    """bytes that there were for it"""

    @property
    def sentence(self) -> str:
        said = (
            f"dry run of {self.tokens:,} tokens forward, backward, step and save: {self.seconds:.1f} s a step"
        )
        if self.reserved is not None and self.room is not None:
            beside = f", expected ~{self.expected / GIB:.1f}" if self.expected is not None else ""
            said += (
                f", {self.reserved / GIB:.1f} of {self.room / GIB:.1f} GiB of GPU memory at the peak{beside}"
            )
        return said


def probe_memory(
    engine: Engine,
    model: Any,
    packs: Packs | Sequence[Pack],
    request: ProbeRequest,
    *,
    world: World,
    scratch: Path,
    timeout: float,
    estimate: MemoryEstimate | None = None,
    rows: FixedRows | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """Settle what is `auto`, and run the hardest rows with it. All processes call it together, before a saved
    step is loaded.

    scratch   a directory for the save, on the disk where steps will be saved; it is removed again
    timeout   seconds that processes wait for each other's files
    rows      where layers are to be compiled: they are, as they are tried

    Afterwards the weights are what they were and the engine has neither gradients nor moments; the model
    recomputes or not, as was settled. Raises ConfigError, with what would fit, when even the least that the
    config allows does not, and StageError when the save fails.
    """
    sizes = [(len(pack.ids), int(pack.trained.sum())) for pack in packs]
    probe = MemoryProbe(engine, model, packs, sizes, request, world, estimate, rows)
    before = fingerprint(engine.state())
    trial = probe.settle(say)
    try_save(engine.state(), scratch, world, timeout)
    if fingerprint(engine.state()) != before:
        raise RuntimeError("a step with a learning rate of 0 has changed the weights")
    engine.reset()
    setting = trial.setting
    tokens, targets = probe.most(setting.micro)
    return ProbeResult(
        micro_batch=setting.micro,
        recompute=setting.recompute.said(probe.layers),
        tokens=tokens,
        targets=targets,
        seconds=trial.seconds,
        tokens_per_second=world.size * trial.tokens / max(trial.seconds, 1e-6),
        reserved=trial.reserved if probe.cuda else None,
        expected=probe.expected(setting),
        room=available_gpu_memory(world, request.memory) if probe.cuda else None,
    )


def fingerprint(state: State) -> list[int]:
    """A number for each tensor that trains, which changes with any bit of it but the sign of a zero."""
    return [
        int((tensor.detach() + 0.0).view(torch.int32).sum(dtype=torch.int64))
        for _, tensor in sorted(state.weights.items())
    ]


def try_save(state: State, scratch: Path, world: World, timeout: float) -> None:
    """Save as a run does, and remove it. Raises StageError when that fails."""
    if world.first:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    try:
        with Saver(scratch, rank=world.rank, of=world.size, timeout=timeout) as saver:
            world.barrier()  # the first process has made the directory
            saver.save(state, step=0, tokens=0, scores={}, optimizer=True)
        world.barrier()
    finally:
        if world.first:
            shutil.rmtree(scratch, ignore_errors=True)
