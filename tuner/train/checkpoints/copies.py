"""Copies of tensors in the host's memory, so that what is saved stays as it was while training changes the
tensors.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

SHARE = 0.8
"""of the memory that is free, what copies may take"""


class HostCopies:
    """The host's memory that tensors are copied to, taken once: page-locked for those of a GPU, which then
    copies while it computes.
    """

    def __init__(self) -> None:
        self._own: dict[tuple[str, str], Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(
        self, tensors: Mapping[str, Mapping[str, Tensor]], free: float
    ) -> dict[str, dict[str, Tensor]] | None:
        """Copies, by kind and name; None where the `free` bytes have no room for them. Those from a GPU
        are on their way: `arrive` waits for them.
        """
        fresh = sum(
            t.nbytes
            for kind, here in tensors.items()
            for name, t in here.items()
            if (kind, name) not in self._own
        )
        if fresh > SHARE * free:
            return None
        try:
            copies = {
                kind: {name: self._copy((kind, name), tensor) for name, tensor in here.items()}
                for kind, here in tensors.items()
            }
        except RuntimeError:  # the driver gives out no more page-locked memory
            self._own.clear()
            return None
        on_gpu = next((t for here in tensors.values() for t in here.values() if t.is_cuda), None)
        if on_gpu is not None:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(on_gpu.device))
        return copies

    def arrive(self) -> None:
        """Return when what was taken is there."""
        if self._arrived:
            self._arrived.synchronize()
            self._arrived = None

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        own = self._own.get(key)
        if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            own = self._own[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        # Later kernels of the stream come after the copy, so they may change the tensor.
        return own.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


def available_memory() -> float:
    """Bytes of the host's memory that this process may still use, without others being moved to the disk;
    inf where that can't be told.
    """
    found = [float("inf")]
    with suppress(OSError, StopIteration, ValueError):
        line = next(
            line
            for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
            if line.startswith("MemAvailable:")
        )
        found.append(float(line.split()[1]) * 1024)
    with suppress(OSError, StopIteration, ValueError):  # the limit of a container
        own = next(
            line
            for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
            if line.startswith("0::")
        )
        group = Path("/sys/fs/cgroup") / own.removeprefix("0::").strip("/")
        limit, used = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        cached = next(
            line
            for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()
            if line.startswith("inactive_file ")
        )
        # float("max") is a ValueError: no limit
        found.append(float(limit) - float(used) + float(cached.split()[1]))
    return min(found)
