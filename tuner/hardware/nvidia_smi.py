"""The NVIDIA GPUs of this machine, as nvidia-smi lists them; torch is not imported."""

import csv
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import NamedTuple

from tuner.errors import ConfigError

TIMEOUT = 30.0
"""seconds until nvidia-smi counts as hanging; GPUs that sleep take some to wake"""


GPU_QUERY = "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version,mig.mode.current"


PROCESS_QUERY = "--query-compute-apps=gpu_uuid,pid,used_memory"


REMEDIES = {
    "version mismatch": "the driver was updated while its older kernel module runs; reboot",
    "communicate with the NVIDIA driver": (
        "load the kernel module (sudo modprobe nvidia); after a kernel update, install the driver again and "
        "reboot"
    ),
    "Insufficient Permissions": "ask for the permission to use the GPU; a container needs --gpus all",
}
"""what nvidia-smi says → what mends it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU."""

    index: int
    """nvidia-smi's number"""
    uuid: str
    """GPU-… in full"""
    name: str
    """the model, as in NVIDIA A100-SXM4-80GB"""
    memory_total: int
    """MiB; 0 where the driver does not tell, as with memory shared with the CPU"""
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
    """Why GPUs can't be used."""

    what: str
    mend: str

    @property
    def paragraph(self) -> str:
        return f"{self.what}: {self.mend}; or train on the CPU with machine=cpu."


def list_gpus() -> list[Gpu]:
    """All GPUs, as nvidia-smi counts them; none where there is no nvidia-smi. Raises ConfigError when it
    does not answer.
    """
    listed = query_nvidia_smi(GPU_QUERY)
    if isinstance(listed, GpuProblem):
        raise ConfigError(listed.paragraph)
    processes = query_nvidia_smi(PROCESS_QUERY) if listed else ""
    # some GPUs tell no processes; their memory still speaks
    return parse_gpus(listed, "" if isinstance(processes, GpuProblem) else processes)


def query_nvidia_smi(query: str) -> str | GpuProblem:
    """What nvidia-smi answers, as CSV without units; empty where there is no nvidia-smi, or no GPU."""
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
            f"nvidia-smi did not answer within {TIMEOUT:g} seconds", "a GPU or its driver hangs; reboot"
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


def parse_gpus(gpus: str, processes: str) -> list[Gpu]:
    """The GPUs in nvidia-smi's two answers, in which a word in brackets stands for what it does not tell."""
    holders: dict[str, tuple[tuple[int, int], ...]] = {}
    for row in csv.reader(processes.splitlines(), skipinitialspace=True):
        if len(row) == 3 and row[1].isdecimal() and int(row[1]) != os.getpid():
            holders[row[0]] = (
                *holders.get(row[0], ()),
                (int(row[1]), int(row[2]) if row[2].isdecimal() else 0),
            )
    found = []
    for row in csv.reader(gpus.splitlines(), skipinitialspace=True):
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
