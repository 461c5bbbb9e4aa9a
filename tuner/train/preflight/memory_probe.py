"""Trial steps on the hardest rows: what a step takes of the GPU's memory, and the settings that fit."""

import gc
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from tuner.data.packs import Pack, Packs
from tuner.errors import ConfigError
from tuner.estimate.memory import CONTEXT
from tuner.estimate.recompute import Dial, Setting, Wish, first_that_fits, settings
from tuner.train.batch import Batch, collate
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.fixed_rows import FixedRows
from tuner.train.recompute import layers_to_recompute, set_recompute

RESERVE = 0.06
"""the share of the memory that `auto` leaves free: rows of other lengths leave other gaps"""
WORTH = 0.05
"""the share of a step's time for which a faster setting is tried, where less was needed than estimated"""
TOO_LOW = 1.1
"""how many times an estimate was at least, of what did not fit"""
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """The micro batches whose memory is asked for."""

    tokens: int
    """of the longest"""
    targets: int
    """of that which has most"""
    setting: Setting
    accumulated: bool
    """whether a step has several"""
    compiled: bool


class MemoryEstimate(Protocol):
    """What estimates can tell."""

    def reserved(self, asked: MicroBatch) -> float:
        """Bytes that PyTorch will hold."""

    def ways(self, asked: MicroBatch, room: float) -> list[str]:
        """Changes of the config that fit into `room` bytes, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRequest:
    """What the config says, and what a step is made of."""

    micro_batch: int | Literal["auto"]
    recompute: Wish
    memory: Dial = "auto"
    packs: int
    """that a process takes in a step, at most: no micro batch is larger"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One try, over all processes: the fullest GPU, and whether all came through."""

    setting: Setting
    fits: bool
    reserved: int
    seconds: float
    tokens: int
    """of the step that was timed"""


def hardest_micro_batches(sizes: Sequence[tuple[int, int]], micro: int) -> list[list[int]]:
    """Of packs by (tokens, targets): those that make the longest micro batch, and those that make the one
    with most targets.

    >>> hardest_micro_batches([(9, 1), (5, 4), (8, 2)], 2)
    [[0, 2], [1, 2]]
    """
    return [heapq.nlargest(micro, range(len(sizes)), key=lambda i: sizes[i][at]) for at in (0, 1)]


def available_gpu_memory(world: World, most: Dial = "auto") -> int:
    """Bytes that PyTorch may hold on the fullest GPU of all processes, with machine.memory=`most`; 0 on the
    CPU. With machine.deterministic nothing may depend on what happens to be free: then what a GPU has.
    """
    if world.device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(world.device)
    here = free + torch.cuda.memory_reserved(world.device)
    if torch.are_deterministic_algorithms_enabled():
        here = total - CONTEXT
    found = int(min(world.gather(here)))
    return found if isinstance(most, str) else min(found, int(most * GIB - CONTEXT))


class MemoryProbe:
    """Where trials happen."""

    def __init__(
        self,
        engine: Engine,
        model: Any,
        packs: Packs | Sequence[Pack],
        sizes: Sequence[tuple[int, int]],
        request: ProbeRequest,
        world: World,
        estimate: MemoryEstimate | None,
        rows: FixedRows | None = None,
    ) -> None:
        self.engine, self.model, self.packs, self.sizes, self.request, self.world, self.estimate = (
            engine,
            model,
            packs,
            sizes,
            request,
            world,
            estimate,
        )
        self._rows = rows
        self.cuda = world.device.type == "cuda"
        self.largest = max(1, min(request.packs, len(packs)))
        self.layers = max(1, len(layers_to_recompute(model)))
        self._expected: dict[Setting, float] = {}

    @property
    def rows(self) -> FixedRows | None:
        """Where the layers are to be compiled."""
        return self._rows if self._rows is not None and self._rows.compiled else None

    def settle(self, say: Callable[[str], None]) -> Trial:
        """The fastest setting that fits: estimates say where to begin, and what is measured corrects them.
        Raises ConfigError, with what would fit, when none does.
        """
        self._expected.clear()
        untried = every = self.settings()
        least = self.least(every)
        room = available_gpu_memory(self.world, self.request.memory)
        limit, scale = (1 - RESERVE) * room, 1.0
        best = trial = None
        while True:
            setting = self.first(untried, scale, limit)
            if setting is None and best is not None:
                return best if trial is best else self.again(best)
            setting = setting or least
            trial, at = self.trial(setting), every.index(setting)
            if trial is None:  # layers can't be compiled
                return self.settle(say)
            if trial.fits and (trial.reserved <= limit or setting == least):
                best, untried = trial, [one for one in every[:at] if one in untried and worth(one, setting)]
            elif setting == least:
                raise ConfigError(self.refusal(setting, room))
            else:
                say(f"{setting.words(self.layers)} takes too much memory")
                untried = [one for one in every[at + 1 :] if one in untried]
            if expected := self.expected(setting):
                scale = trial.reserved / expected if trial.fits else max(TOO_LOW * scale, 1.0)

    def guess(self) -> Setting:
        """The fastest setting that fits by the estimate, or the one that takes least; untried."""
        found = self.settings()
        limit = (1 - RESERVE) * available_gpu_memory(self.world, self.request.memory)
        return self.first(found, 1.0, limit) or self.least(found)

    def least(self, found: Sequence[Setting]) -> Setting:
        """That which takes the least memory."""
        return min(found, key=lambda one: (self.expected(one) or 0.0, one.micro, -one.recompute.blocks))

    def settings(self) -> list[Setting]:
        """All that the config leaves open, the fastest first; where nothing can be estimated, recomputing all
        layers or none.
        """
        wish, cpu = self.request, not self.cuda
        found = settings(
            layers=self.layers,
            packs=self.largest,
            length=max(tokens for tokens, _ in self.sizes),
            micro=1 if cpu and wish.micro_batch == "auto" else wish.micro_batch,
            recompute="none" if cpu and wish.recompute == "auto" else wish.recompute,
            memory=wish.memory,
            compiled=self.rows is not None,
        )
        some = [one for one in found if one.recompute.blocks in (0, self.layers)]
        return found if self.estimate is not None or wish.recompute != "auto" else some

    def first(self, found: Sequence[Setting], scale: float, limit: float) -> Setting | None:
        """The fastest of some settings of which `scale` times the estimate is within the limit."""
        return first_that_fits(found, lambda one: scale * (self.expected(one) or 0.0), limit)

    def again(self, trial: Trial) -> Trial:
        """The same once more: what was tried last decides what the engine holds."""
        return self.trial(trial.setting) or trial

    def trial(self, setting: Setting) -> Trial | None:
        """A step on the hardest micro batch, and on a GPU a second one, with the moments there and, where
        steps add up several, with gradients. None where the layers were to be compiled and can't be.
        """
        longest, fullest = (
            self.batch(chosen, setting.micro) for chosen in hardest_micro_batches(self.sizes, setting.micro)
        )
        accumulates = self.request.packs > setting.micro
        steps = [[longest]]
        if self.cuda:
            steps += [[fullest, longest]] if accumulates else [[fullest], [longest]]
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.world.device)
        set_recompute(self.model, setting.recompute.blocks)
        fits, seconds = True, 0.0

        def run() -> None:
            nonlocal fits, seconds
            try:
                for batches in steps:
                    began = time.monotonic()
                    targets = self.world.size * sum(len(batch.targets_M) for batch in batches)
                    self.engine.forward_backward(batches, targets)
                    # with gradients scaled to nothing too, not even the sign of a zero changes
                    self.engine.step(0.0, 0.0).item()  # waits for the device, whose time it is
                    seconds = time.monotonic() - began
            except torch.OutOfMemoryError:
                fits = False

        if self.rows is not None:
            if not self.rows.run(run, setting.recompute):
                self.engine.reset()
                return None
        else:
            run()
        if not fits:  # outside of the handler, whose traceback holds tensors
            self.engine.reset()
        reserved = torch.cuda.max_memory_reserved(self.world.device) if self.cuda else 0
        told = self.world.gather([fits, reserved, seconds])
        return Trial(
            setting=setting,
            fits=all(fit for fit, _, _ in told),
            reserved=max(bytes_ for _, bytes_, _ in told),
            seconds=max(spent for _, _, spent in told),
            tokens=sum(batch.ids_1N.shape[1] for batch in steps[-1]),
        )

    def batch(self, chosen: Sequence[int], micro: int) -> Batch:
        batch = collate([self.packs[i] for i in chosen], indices=chosen)
        return self.rows.shape(micro).fill(batch) if self.rows else batch

    def most(self, micro: int) -> tuple[int, int]:
        """Tokens of the longest micro batch, and targets of the one that has most."""
        longest, fullest = hardest_micro_batches(self.sizes, micro)
        tokens = micro * self.rows.tokens if self.rows else sum(self.sizes[i][0] for i in longest)
        return tokens, sum(self.sizes[i][1] for i in fullest)

    def asked(self, setting: Setting) -> MicroBatch:
        """The hardest micro batches with a setting."""
        tokens, targets = self.most(setting.micro)
        return MicroBatch(
            tokens=tokens,
            targets=targets,
            setting=setting,
            accumulated=self.request.packs > setting.micro,
            compiled=self.rows is not None,
        )

    def expected(self, setting: Setting) -> float | None:
        if self.estimate is None or not self.cuda:
            return None
        if setting not in self._expected:
            self._expected[setting] = self.estimate.reserved(self.asked(setting))
        return self._expected[setting]

    def refusal(self, setting: Setting, room: float) -> str:
        micro, blocks = setting.micro, setting.recompute.blocks
        tokens, _ = self.most(micro)
        said = (
            f"This run does not fit into GPU memory: a micro batch of {micro} "
            f"pack{'s' * (micro > 1)} with {tokens:,} tokens was tried"
        )
        said += (
            f"{f', with machine.recompute={setting.recompute.said(self.layers)}' if blocks else ''}, and "
            f"{room / GIB:.1f} GiB are there for it. "
        )
        ways = []
        if self.estimate is not None:
            ways = self.estimate.ways(self.asked(setting), (1 - RESERVE) * room)
        if ways:
            return f"{said}By the estimate, any of these fits: {'; '.join(ways)}."
        return (
            f"{said}Take a smaller model, a shorter data.length, a GPU with more memory, or several with "
            "machine.gpus and machine.zero=3."
        )


def worth(one: Setting, other: Setting) -> bool:
    """Whether the one is so much faster that trying it pays."""
    return one.cost < other.cost * (1 - WORTH)
