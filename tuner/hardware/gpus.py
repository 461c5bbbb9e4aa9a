"""The NVIDIA cards of this machine, and which of them a run takes. nvidia-smi is asked; torch is not
imported.

A child is given its cards by UUID: nvidia-smi counts along the PCI bus and CUDA from the fastest card on, so
a number may mean two cards.
"""

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tuner.errors import ConfigError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"

TIMEOUT = 30.0
"""seconds until nvidia-smi counts as hanging; cards that sleep take some to wake"""

GPU_QUERY = "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version,mig.mode.current"
PROCESS_QUERY = "--query-compute-apps=gpu_uuid,pid,used_memory"

REMEDIES = {
    "version mismatch": "the driver was updated while its older kernel module runs; reboot",
    "communicate with the NVIDIA driver": (
        "load the kernel module (sudo modprobe nvidia); after a kernel update, install the driver again and "
        "reboot"
    ),
    "Insufficient Permissions": "ask for the permission to use the card; a container needs --gpus all",
}
"""what nvidia-smi says → what mends it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One card."""

    index: int
    """nvidia-smi's number"""
    uuid: str
    """GPU-… in full"""
    name: str
    """the model, as in NVIDIA A100-SXM4-80GB"""
    memory_total: int
    """MiB; 0 where the driver does not tell, as with memory shared with the processor"""
    memory_used: int
    """MiB"""
    driver: str
    """its version"""
    mig: bool = False
    """split into MIG instances, among which CUDA chooses"""
    holders: tuple[tuple[int, int], ...] = ()
    """pid and MiB of each compute process on it, but this one; MiB is 0 where the driver does not tell"""

    @property
    def free(self) -> int:
        """MiB."""
        return self.memory_total - self.memory_used

    @property
    def busy(self) -> bool:
        """Somebody computes on it, or more than a quarter of its memory is used: in a container, processes
        outside it are not listed.

        A display is no compute process, and takes less than that.
        """
        return bool(self.holders) or 4 * self.memory_used > self.memory_total

    @property
    def state(self) -> str:
        """`idle`, or why not."""
        if self.mig:
            return "split into MIG instances"
        if self.holders:
            return "busy: " + ", ".join(
                f"pid {pid} holds {mib} MiB" if mib else f"pid {pid}" for pid, mib in self.holders
            )
        return (
            f"busy: {self.memory_used} of {self.memory_total} MiB are used, by no process that is listed here"
            if self.busy
            else "idle"
        )


class GpuProblem(NamedTuple):
    """Why cards can't be used."""

    what: str
    mend: str

    @property
    def paragraph(self) -> str:
        return f"{self.what}: {self.mend}; or train on the processor with machine=cpu."


def list_gpus() -> list[Gpu]:
    """All cards, as nvidia-smi counts them; none where there is no nvidia-smi. Raises ConfigError when it
    does not answer.
    """
    listed = query_nvidia_smi(GPU_QUERY)
    if isinstance(listed, GpuProblem):
        raise ConfigError(listed.paragraph)
    processes = query_nvidia_smi(PROCESS_QUERY) if listed else ""
    # some cards tell no processes; their memory still speaks
    return parse_gpus(listed, "" if isinstance(processes, GpuProblem) else processes)


def query_nvidia_smi(query: str) -> str | GpuProblem:
    """What nvidia-smi answers, as CSV without units; empty where there is no nvidia-smi, or no card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        done = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return GpuProblem(
            f"nvidia-smi did not answer within {TIMEOUT:g} seconds", "a card or its driver hangs; reboot"
        )
    except OSError as error:
        return GpuProblem(
            f"{tool} can't be started ({error.strerror})", "install the NVIDIA driver's tools again"
        )
    if done.returncode == 0:
        return done.stdout
    said = " ".join((done.stdout + done.stderr).split())
    if "No devices were found" in said:
        return ""
    mend = next(
        (mend for mark, mend in REMEDIES.items() if mark in said),
        "reboot, or install the NVIDIA driver again",
    )
    return GpuProblem(f"nvidia-smi fails ({said[:200]})", mend)


def parse_gpus(cards: str, processes: str) -> list[Gpu]:
    """The cards in nvidia-smi's two answers, in which a word in brackets stands for what it does not tell."""
    holders: dict[str, tuple[tuple[int, int], ...]] = {}
    for row in csv.reader(processes.splitlines(), skipinitialspace=True):
        if len(row) == 3 and row[1].isdecimal() and int(row[1]) != os.getpid():
            holders[row[0]] = (
                *holders.get(row[0], ()),
                (int(row[1]), int(row[2]) if row[2].isdecimal() else 0),
            )
    found = []
    for row in csv.reader(cards.splitlines(), skipinitialspace=True):
        if len(row) == 7 and row[0].isdecimal():
            index, uuid, name, *memory, driver, mig = row
            total, used = map(int, memory) if all(word.isdecimal() for word in memory) else (0, 0)
            found.append(
                Gpu(
                    index=int(index),
                    uuid=uuid,
                    name=name,
                    memory_total=total,
                    memory_used=used,
                    driver=driver,
                    mig=mig == "Enabled",
                    holders=holders.get(uuid, ()),
                )
            )
    return found


def gpus_hidden(environ: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES is there to hide every card: it is empty, -1, or a word such as Slurm's
    NoDevFiles.
    """
    return VISIBLE_DEVICES in environ and not re.match(r"\s*(\+?\d|GPU-|MIG-)", environ[VISIBLE_DEVICES])


def names_mig_instances(environ: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names MIG instances, which are left to CUDA."""
    return environ.get(VISIBLE_DEVICES, "").lstrip().startswith("MIG-")


def visible_gpus(found: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """The cards that CUDA_VISIBLE_DEVICES leaves, in its order, read as CUDA reads it; MIG instances are not
    among them.

    CUDA takes numbers, or beginnings of UUIDs, up to the first entry that names no card (NVIDIA, CUDA
    Programming Guide, "CUDA Environment Variables"); a card named twice leaves none. Numbers are taken for
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
            named = [card for card in found if entry.startswith("GPU-") and card.uuid.startswith(entry)]
        else:
            named = [card for card in found if number and card.index == int(number[1])]
        if len(named) != 1:
            break
        if named[0] in seen:
            return []
        seen += named
    return seen


def visibility_problem(found: Sequence[Gpu], environ: Mapping[str, str]) -> GpuProblem | None:
    """What is wrong with a CUDA_VISIBLE_DEVICES that is there to name cards: it names none, or by numbers
    that may mean others.
    """
    if VISIBLE_DEVICES not in environ or gpus_hidden(environ) or names_mig_instances(environ):
        return None
    value, kinds = environ[VISIBLE_DEVICES], sorted({card.name for card in found})
    here = ", ".join(f"{card.index} ({card.name}, {card.uuid})" for card in found)
    if not visible_gpus(found, environ):
        return GpuProblem(
            f"{VISIBLE_DEVICES}={value} names no card that is here, or one twice; here are {here}",
            f"mend or unset {VISIBLE_DEVICES}",
        )
    if (
        len(kinds) > 1
        and not value.lstrip().startswith("GPU-")
        and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    ):
        return GpuProblem(
            f"{VISIBLE_DEVICES}={value} counts from the fastest card on, which with {' and '.join(kinds)} "
            "does not say which one is meant",
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, to count as nvidia-smi does, or name cards by UUID; here are "
            f"{here}",
        )
    return None


def choose_gpus(
    wish: int | Literal["auto"] | tuple[int, ...], found: Sequence[Gpu], environ: Mapping[str, str]
) -> str | None:
    """CUDA_VISIBLE_DEVICES for a child with machine.gpus=`wish`; None leaves it as it is: no card, none
    wanted, or MIG.

    wish    how many of the visible cards: those with most free memory, no busy one; "auto" is 1
            or places among the visible cards, from 0: just those, busy or not

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
    whole = [card for card in seen if not card.mig]
    if not whole:
        return None
    count = 1 if wish == "auto" else wish
    if count > len(seen):
        raise ConfigError(
            f"machine.gpus={count} wants {count} GPUs, and {_count(seen)}{masked}: take them all with "
            f"machine.gpus={len(seen)}."
        )
    idle = sorted((card for card in whole if not card.busy), key=lambda card: -card.free)
    if len(idle) < count:
        states = "; ".join(
            f"GPU {place} ({card.name}) is {card.state}"
            for place, card in enumerate(seen)
            if card.busy or card.mig
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
            f"idle{masked}. {states}. {', '.join(ways)}, or train on the processor with machine=cpu."
        )
    return ",".join(card.uuid for card in seen if card in idle[:count])


def _list(places: Sequence[int]) -> str:
    return f"[{','.join(map(str, places))}]"


def _count(seen: Sequence[Gpu]) -> str:
    return f"{len(seen)} are visible: " + ", ".join(
        f"{place} ({card.name})" for place, card in enumerate(seen)
    )
