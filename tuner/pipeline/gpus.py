"""The GPUs of a stage: chosen when it starts, since what is idle changes, and claimed while it runs.

nvidia-smi lists a process once it computes; two that begin together would both take the same GPU. So each GPU
has a lock for each user, which the processes of a stage hold until the last of them ends. It keeps away who
takes idle GPUs, and nobody who names one.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from tuner.config.schema import Machine
from tuner.errors import ConfigError, StoreError
from tuner.files import user_cache
from tuner.hardware.gpus import choose_gpus, gpus_hidden, visible_gpus
from tuner.hardware.nvidia_smi import Gpu, list_gpus
from tuner.pipeline.planned_stage import PlannedStage
from tuner.store import locks

LOOK = 0.5
"""seconds between two looks at GPUs that are waited for"""
SETTLE = 30.0
"""seconds in which the memory of a process that has ended comes back"""


class ClaimedGpus(NamedTuple):
    """The GPUs of a stage."""

    visible: str | None = None
    """CUDA_VISIBLE_DEVICES for it; None leaves that as it is"""
    locks: Sequence[int] = ()
    """descriptors that its processes hold"""


@contextmanager
def gpus_for(planned: PlannedStage, say: Callable[[str], None]) -> Iterator[ClaimedGpus]:
    """The GPUs for a stage that computes on them. Those on which another process of tuner computes are waited
    for. Raises ConfigError.
    """
    machine, name = planned.config.machine, planned.stage.name
    if not planned.stage.computes or machine.device == "cpu" or gpus_hidden(os.environ):
        yield ClaimedGpus()
        return
    with claimed_gpus(machine.gpus, lambda why: say(f"{name:<12} waiting: {why}")) as (found, claimed):
        cards = [card for card in found if claimed.visible and card.uuid in claimed.visible.split(",")]
        if cards and len(found) > 1:
            say(_told(cards, alone=len(cards) > 1 and not planned.stage.several))
        yield claimed


@contextmanager
def claimed_gpus(
    wish: int | Literal["auto"] | tuple[int, ...], waiting: Callable[[str], None]
) -> Iterator[tuple[Sequence[Gpu], ClaimedGpus]]:
    """All GPUs, and those that machine.gpus=`wish` takes; `waiting` is told once why they are not to be had
    yet. None is held while others are waited for.
    """
    seen: dict[str, float] = {}
    with ExitStack() as stack:
        while True:
            found = list_gpus()
            holders = {gpu.uuid: who for gpu in found if (who := locks.holder(_lock(gpu)))}
            if not isinstance(wish, tuple) and (why := _in_the_way(wish, found, holders, seen)):
                if not seen:
                    waiting(why)
                seen |= dict.fromkeys(holders, time.monotonic())
                time.sleep(LOOK)
                continue
            visible = choose_gpus(wish, _busy(found, holders), os.environ)
            uuids = visible.split(",") if visible else []
            held = [_claim(gpu, stack) for gpu in found if gpu.uuid in uuids]
            if None not in held or isinstance(wish, tuple):
                break
            stack.close()  # somebody was faster
            time.sleep(LOOK)
        yield found, ClaimedGpus(visible, [fd for fd in held if fd is not None and fd >= 0])


def gpus_to_see(machine: Machine) -> str | None:
    """CUDA_VISIBLE_DEVICES for what answers beside the pipeline, and holds no GPU for itself; None leaves it
    as it is. Raises ConfigError.
    """
    if machine.device == "cpu" or gpus_hidden(os.environ):
        return None
    return choose_gpus(machine.gpus, list_gpus(), os.environ)


def idle_gpus() -> list[Gpu]:
    """Those that a run would take now; none where nvidia-smi does not say."""
    if gpus_hidden(os.environ):
        return []
    try:
        found = visible_gpus(list_gpus(), os.environ)
    except ConfigError:
        return []
    return [gpu for gpu in found if not (gpu.busy or gpu.mig or locks.holder(_lock(gpu)))]


def _in_the_way(
    wish: int | Literal["auto"], found: Sequence[Gpu], holders: Mapping[str, str], seen: Mapping[str, float]
) -> str | None:
    """Who computes on the GPUs that are wanted, where waiting for processes of tuner's will help. `seen` is
    when a GPU was last held by one.
    """
    try:
        choose_gpus(wish, _busy(found, holders), os.environ)
    except ConfigError:
        now = time.monotonic()
        soon = {*holders, *(uuid for uuid, at in seen.items() if now - at < SETTLE)}
        freed = [replace(gpu, memory_used=0, holders=()) if gpu.uuid in soon else gpu for gpu in found]
        with suppress(ConfigError):  # not even then
            choose_gpus(wish, freed, os.environ)
            places = [gpu for gpu in visible_gpus(found, os.environ) if gpu.uuid in soon]
            told = " and ".join(f"{holders.get(gpu.uuid, 'memory')} is on GPU {gpu.index}" for gpu in places)
            return f"{told}; machine.gpus=[{_place(places[0], found)}] takes it all the same"
    return None


def _place(gpu: Gpu, found: Sequence[Gpu]) -> int:
    return visible_gpus(found, os.environ).index(gpu)


def _busy(found: Sequence[Gpu], holders: Mapping[str, str]) -> list[Gpu]:
    """The GPUs as nvidia-smi will show them once those that hold them compute."""

    def process(who: str) -> tuple[int, int]:
        pid = who.rpartition(":")[2]
        return int(pid) if pid.isdecimal() else 0, 0

    return [
        replace(gpu, holders=gpu.holders or (process(holders[gpu.uuid]),)) if gpu.uuid in holders else gpu
        for gpu in found
    ]


def _lock(gpu: Gpu) -> Path:
    return user_cache("gpus") / gpu.uuid


def _claim(gpu: Gpu, stack: ExitStack) -> int | None:
    """The descriptor of a GPU's lock, which `stack` holds; None where another has it, -1 where there are no
    locks.
    """
    path = _lock(gpu)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(locks.exclusive_unless(path, lambda _: None, lambda: True, group=False))
    except (OSError, StoreError):
        return -1


def _told(cards: Sequence[Gpu], *, alone: bool) -> str:
    """Which GPUs a stage has, as its run's log has it."""
    each = " and ".join(f"GPU {card.index} ({card.name}, {card.free / 1024:.0f} GiB free)" for card in cards)
    return f"  on {each}{', of which one process uses the first' if alone else ''}"
