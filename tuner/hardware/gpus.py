"""Which of the NVIDIA GPUs of this machine a run takes; torch is not imported.

A child is given its GPUs by UUID: nvidia-smi counts along the PCI bus and CUDA from the fastest GPU on, so
a number may mean two GPUs.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from tuner.errors import ConfigError
from tuner.hardware.nvidia_smi import Gpu, GpuProblem

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


def gpus_hidden(environ: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES is there to hide every GPU: it is empty, -1, or a word such as Slurm's
    NoDevFiles.
    """
    return VISIBLE_DEVICES in environ and not re.match(r"\s*(\+?\d|GPU-|MIG-)", environ[VISIBLE_DEVICES])


def names_mig_instances(environ: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names MIG instances, which are left to CUDA."""
    return environ.get(VISIBLE_DEVICES, "").lstrip().startswith("MIG-")


def visible_gpus(found: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order, read as CUDA reads it; MIG instances are not
    among them.

    CUDA takes numbers, or beginnings of UUIDs, up to the first entry that names no GPU (NVIDIA, CUDA
    Programming Guide, "CUDA Environment Variables"); a GPU named twice leaves none. Numbers are taken for
    nvidia-smi's; `misnamed` says when they may not be.
    """
    if VISIBLE_DEVICES not in environ:
        return list(found)
    entries = [entry.strip() for entry in environ[VISIBLE_DEVICES].split(",")]
    by_uuid = entries[0].startswith("GPU-")
    seen: list[Gpu] = []
    for entry in entries:
        number = re.match(r"\+?(\d+)", entry)
        if by_uuid:
            named = [gpu for gpu in found if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
        else:
            named = [gpu for gpu in found if number and gpu.index == int(number[1])]
        if len(named) != 1:
            break
        if named[0] in seen:
            return []
        seen += named
    return seen


def visibility_problem(found: Sequence[Gpu], environ: Mapping[str, str]) -> GpuProblem | None:
    """What is wrong with a CUDA_VISIBLE_DEVICES that is there to name GPUs: it names none, or by numbers
    that may mean others.
    """
    if VISIBLE_DEVICES not in environ or gpus_hidden(environ) or names_mig_instances(environ):
        return None
    value, kinds = environ[VISIBLE_DEVICES], sorted({gpu.name for gpu in found})
    here = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in found)
    if not visible_gpus(found, environ):
        return GpuProblem(
            f"{VISIBLE_DEVICES}={value} names no GPU that is here, or one twice; here are {here}",
            f"correct or unset {VISIBLE_DEVICES}",
        )
    if (
        len(kinds) > 1
        and not value.lstrip().startswith("GPU-")
        and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    ):
        return GpuProblem(
            f"{VISIBLE_DEVICES}={value} counts from the fastest GPU on, which with {' and '.join(kinds)} "
            "does not say which one is meant",
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, to count as nvidia-smi does, or name GPUs by UUID; here are "
            f"{here}",
        )
    return None


def choose_gpus(
    wish: int | Literal["auto"] | tuple[int, ...], found: Sequence[Gpu], environ: Mapping[str, str]
) -> str | None:
    """CUDA_VISIBLE_DEVICES for a child with machine.gpus=`wish`; None leaves it as it is: no GPU, none
    wanted, or MIG.

    wish    how many of the visible GPUs: those with most free memory, no busy one; "auto" is 1
            or places among the visible GPUs, from 0: just those, busy or not

    Raises ConfigError when there are not enough, with who holds the busy ones.
    """
    if not found or gpus_hidden(environ) or names_mig_instances(environ):
        return None
    if why := visibility_problem(found, environ):
        raise ConfigError(why.paragraph)
    seen = visible_gpus(found, environ)
    masked = (
        f" ({VISIBLE_DEVICES}={environ[VISIBLE_DEVICES]} hides {len(found) - len(seen)} of {len(found)})"
        if len(seen) < len(found)
        else ""
    )
    if isinstance(wish, tuple):
        if max(wish) >= len(seen):
            raise ConfigError(
                f"machine.gpus={_list(wish)} names GPU {max(wish)}, and {_count(seen)}{masked}: name others, "
                "or say how many."
            )
        return ",".join(seen[place].uuid for place in wish)
    whole = [gpu for gpu in seen if not gpu.mig]
    if not whole:
        return None
    count = 1 if wish == "auto" else wish
    if count > len(seen):
        raise ConfigError(
            f"machine.gpus={count} wants {count} GPUs, and {_count(seen)}{masked}: take them all with "
            f"machine.gpus={len(seen)}."
        )
    idle = sorted((gpu for gpu in whole if not gpu.busy), key=lambda gpu: -gpu.free)
    if len(idle) < count:
        states = "; ".join(
            f"GPU {place} ({gpu.name}) is {gpu.state}"
            for place, gpu in enumerate(seen)
            if gpu.busy or gpu.mig
        )
        told = sorted(
            sorted(range(len(seen)), key=lambda place: (seen[place].busy, -seen[place].free))[:count]
        )
        ways = [
            "Wait until enough are free",
            f"take just those you name, busy or not, with machine.gpus={_list(told)}",
        ]
        ways += [f"take fewer with machine.gpus={len(idle)}"] if idle else []
        ways += [f"show others with {VISIBLE_DEVICES}"] if masked else []
        raise ConfigError(
            f"machine.gpus={wish} takes idle GPUs only: {count} wanted, {len(idle)} of {len(seen)} visible "
            f"idle{masked}. {states}. {', '.join(ways)}, or train on the CPU with machine=cpu."
        )
    return ",".join(gpu.uuid for gpu in seen if gpu in idle[:count])


def _list(places: Sequence[int]) -> str:
    return f"[{','.join(map(str, places))}]"


def _count(seen: Sequence[Gpu]) -> str:
    return f"{len(seen)} are visible: " + ", ".join(f"{place} ({gpu.name})" for place, gpu in enumerate(seen))
