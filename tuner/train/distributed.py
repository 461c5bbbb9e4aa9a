"""The processes that train together, and the little they tell each other besides tensors."""

import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from tuner.errors import ConfigError, Interrupted, StageError
from tuner.launch.channel_client import ChannelClient, current_channel, is_peer_lost

SIOCGIFADDR = 0x8915
"""asks Linux for an interface's IPv4 address (netdevice(7))"""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among those that train together. What it says to the others goes over the CPU, in
    the order in which all of them call.
    """

    rank: int
    """0 is the one that writes the journal and speaks"""
    size: int
    device: torch.device
    """where this process computes"""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by rank; `value` is what JSON can hold. Floats arrive bit for bit.

        Raises StageError when a process is gone, or did not come within machine.timeout.
        """
        if self.size == 1:
            return [value]
        channel = current_channel()
        try:
            with channel.waiting() if channel else nullcontext():
                return [json.loads(text) for text in _exchange(json.dumps(value).encode(), self.size)]
        except RuntimeError as error:
            if not is_peer_lost(error):
                raise
            raise StageError(
                f"Rank {self.rank} of {self.size} lost another process, or waited for it in vain: "
                f"{' '.join(str(error).split())}"
            ) from error

    def sum(self, values: Sequence[float]) -> list[float]:
        """Place by place over all processes, in fp64 and in the order of the ranks."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def barrier(self) -> None:
        """Go on when all are here."""
        self.gather(None)


def single_process(device: torch.device) -> World:
    return World(rank=0, size=1, device=device)


def raise_together(world: World, complaint: str) -> None:
    """Raise StageError in all processes where one has a complaint, with the first that is not empty."""
    if found := [one for one in world.gather(complaint) if one]:
        raise StageError(found[0])


@contextmanager
def from_environment(device: torch.device, *, timeout: float) -> Iterator[World]:
    """The processes among which a launcher started this one: ours, or one that sets what torchrun does (RANK,
    WORLD_SIZE, MASTER_ADDR …).

    On GPUs each process has the one of its LOCAL_RANK. `timeout`: seconds that they wait for each other.

    All go out together, unless an error ends one of them: what the others then wait for never comes, and who
    started them ends them. Raises ConfigError where there are fewer GPUs than processes, StageError where the
    others do not come.
    """
    size, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    if size == 1:
        try:
            yield single_process(device)
        finally:
            # by DeepSpeed's engine; NCCL complains at the end of a process that leaves it
            if dist.is_initialized():
                dist.destroy_process_group()
        return
    if device.type == "cuda":
        if local >= (count := torch.cuda.device_count()):
            raise ConfigError(
                f"Process {local} of this machine has no GPU: {count} are visible. Take a process for each, "
                f"with machine.processes={count}."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    world = World(rank=rank, size=size, device=device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    try:
        if channel := current_channel():
            dist.init_process_group(
                backend,
                store=_store(channel, rank, size, patience),
                rank=rank,
                world_size=size,
                timeout=patience,
            )
        else:
            dist.init_process_group(backend, timeout=patience)
        world.barrier()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and is_peer_lost(error):
            raise StageError(
                f"Rank {rank} of {size} did not meet the others within {timeout:g} s (machine.timeout): "
                f"{' '.join(str(error).split())}"
            ) from error
        raise
    try:
        yield world
    except Interrupted:
        _part(world)
        raise
    _part(world)


def _part(world: World) -> None:
    world.barrier()  # the first one holds the store, which the others need until here
    dist.destroy_process_group()


def _store(channel: ChannelClient, rank: int, size: int, patience: timedelta) -> Store:
    """The store where all meet. The first process listens on a port that the kernel chose, and no one else
    can have taken; the launcher tells the others.
    """
    near = int(os.environ["LOCAL_WORLD_SIZE"]) == size
    listener = socket.create_server(("127.0.0.1" if near else "", 0), backlog=2 * size) if rank == 0 else None
    host, port, own = channel.meet(listener.getsockname()[1] if listener else None)
    store = TCPStore(
        host,
        port,
        size,
        is_master=rank == 0,
        timeout=patience,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener else None,
    )
    # Gloo would take the address of this machine's name, which in many an /etc/hosts is a loopback address:
    # the others can't reach that.
    if name := interface(own):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return store


def interface(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where that can't be told."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:  # it has none
                    continue
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    except OSError:
        pass
    return None


def _exchange(text: bytes, size: int) -> list[bytes]:
    """Everybody's bytes, by rank: first how many, then the bytes themselves, filled up to the longest."""
    own = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(own)]))
    longest = max(int(length) for length in lengths)
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(parts, torch.cat([own, torch.zeros(longest - len(own), dtype=torch.uint8)]))
    return [part[: int(length)].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]
