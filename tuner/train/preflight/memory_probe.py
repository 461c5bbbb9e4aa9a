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
from tuner.train.batch import Batch, collate
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.recompute import set_recompute

RESERVE = 0.06
"""the share of the memory that `auto` leaves free: rows of other lengths leave other gaps"""
CLEAR = 1.25
"""how many times the room an estimate must be for a trial to be left out"""
ENOUGH = 1 << 14
"""tokens of a micro batch that keep a GPU busy: `auto` takes no more, which would only take memory"""
GIB = 1 << 30


class MemoryEstimate(Protocol):
    """What estimates can tell, for micro batches of `micro` packs with `tokens` tokens and `targets`
    targets.
    """

    def reserved(self, tokens: int, targets: int, *, accumulated: bool, recompute: bool) -> float:
        """Bytes that PyTorch will hold."""

    def ways(
        self, tokens: int, targets: int, *, accumulated: bool, recompute: bool, micro: int, room: float
    ) -> list[str]:
        """Changes of the config that fit into `room` bytes, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRequest:
    """What the config says, and what a step is made of."""

    micro_batch: int | Literal["auto"]
    recompute: Literal["auto", "none", "blocks"]
    packs: int
    """that a process takes in a step, at most: no micro batch is larger"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One try, over all processes: the fullest GPU, and whether all came through."""

    micro: int
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


def available_gpu_memory(world: World) -> int:
    """Bytes that PyTorch may hold on the fullest GPU of all processes; 0 on the CPU."""
    if world.device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(world.device)
    return int(min(world.gather(free + torch.cuda.memory_reserved(world.device))))


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
        self.cuda = world.device.type == "cuda"
        self.largest = max(1, min(request.packs, len(packs)))

    def settle(self, say: Callable[[str], None]) -> tuple[Literal["none", "blocks"], Trial]:
        """What is computed again, and the trial with the micro batch that was settled."""
        auto = self.request.micro_batch == "auto"
        begin = 1 if self.request.micro_batch == "auto" else min(self.request.micro_batch, self.largest)
        kinds: list[Literal["none", "blocks"]] = (
            [self.request.recompute]
            if self.request.recompute != "auto"
            else ["none", "blocks"]
            if self.cuda
            else ["none"]
        )
        room, trial = available_gpu_memory(self.world), None
        for kind in kinds:
            expected = self.expected(begin, recompute=kind == "blocks")
            if kind != kinds[-1] and expected is not None and expected > CLEAR * room:
                continue
            set_recompute(self.model, kind == "blocks")
            trial = self.trial(begin)
            if trial.fits and (kind == kinds[-1] or trial.reserved <= (1 - RESERVE) * room):
                return kind, self.enlarge(trial, room, say) if auto and self.cuda else trial
        raise ConfigError(self.refusal(begin, room, recompute=kinds[-1] == "blocks"))

    def enlarge(self, one: Trial, room: float, say: Callable[[str], None]) -> Trial:
        """The largest micro batch that leaves a reserve, up to what keeps a GPU busy: two measurements make
        a line, and what it promises is tried.
        """
        best, limit = one, (1 - RESERVE) * room
        largest = min(self.largest, ENOUGH // max(tokens for tokens, _ in self.sizes))
        if largest < 2:
            return best
        two = self.trial(2)
        if not two.fits or two.reserved > limit:
            return self.again(best)
        best = two
        slope = max(1, two.reserved - one.reserved)
        wanted = min(largest, 2 + int((limit - two.reserved) / slope))
        while wanted > best.micro:
            trial = self.trial(wanted)
            if trial.fits and trial.reserved <= limit:
                return trial
            say(f"micro batches of {wanted} packs do not fit")
            wanted = best.micro + (wanted - best.micro) // 2
        return self.again(best)

    def again(self, trial: Trial) -> Trial:
        """The same once more: what was tried last decides what the engine holds."""
        return self.trial(trial.micro)

    def trial(self, micro: int) -> Trial:
        """A step on the hardest micro batch, and on a GPU a second one, with the moments there and, where
        steps add up several, with gradients.
        """
        longest, fullest = (self.batch(chosen) for chosen in hardest_micro_batches(self.sizes, micro))
        accumulates = self.request.packs > micro
        steps = [[longest]]
        if self.cuda:
            steps += [[fullest, longest]] if accumulates else [[fullest], [longest]]
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.world.device)
        fits, seconds = True, 0.0
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
        if not fits:  # outside of the handler, whose traceback holds tensors
            self.engine.reset()
        reserved = torch.cuda.max_memory_reserved(self.world.device) if self.cuda else 0
        told = self.world.gather([fits, reserved, seconds])
        return Trial(
            micro=micro,
            fits=all(fit for fit, _, _ in told),
            reserved=max(bytes_ for _, bytes_, _ in told),
            seconds=max(spent for _, _, spent in told),
            tokens=sum(batch.ids_1N.shape[1] for batch in steps[-1]),
        )

    def batch(self, chosen: Sequence[int]) -> Batch:
        return collate([self.packs[i] for i in chosen], indices=chosen)

    def most(self, micro: int) -> tuple[int, int]:
        """Tokens of the longest micro batch, and targets of the one that has most."""
        longest, fullest = hardest_micro_batches(self.sizes, micro)
        return sum(self.sizes[i][0] for i in longest), sum(self.sizes[i][1] for i in fullest)

    def expected(self, micro: int, *, recompute: bool) -> float | None:
        if self.estimate is None or not self.cuda:
            return None
        return self.estimate.reserved(
            *self.most(micro), accumulated=self.request.packs > micro, recompute=recompute
        )

    def refusal(self, micro: int, room: float, *, recompute: bool) -> str:
        tokens, targets = self.most(micro)
        said = (
            f"This run does not fit into GPU memory: a micro batch of {micro} "
            f"pack{'s' * (micro > 1)} with {tokens:,} tokens was tried"
        )
        said += (
            f"{', with machine.recompute=blocks' if recompute else ''}, and {room / GIB:.1f} GiB are there "
            "for it. "
        )
        ways = []
        if self.estimate is not None:
            ways = self.estimate.ways(
                tokens,
                targets,
                accumulated=self.request.packs > micro,
                recompute=recompute,
                micro=micro,
                room=(1 - RESERVE) * room,
            )
        if ways:
            return f"{said}By the estimate, any of these fits: {'; '.join(ways)}."
        return (
            f"{said}Take a smaller model, a shorter data.length, a GPU with more memory, or several with "
            "machine.gpus and machine.zero=3."
        )
