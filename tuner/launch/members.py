"""The processes of a run: how many there are and where, and what their launcher knows of each."""

import math
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner import errors
from tuner.config.schema import Machine
from tuner.errors import ConfigError, Interrupted, StageError, TunerError
from tuner.launch.hosts import find_hosts

SETTLE, MOMENT = 5.0, 0.5
"""seconds in which the cause of a lost connection may still show; and in which last words still arrive"""
LAST_LINES = 20
"""of what a process wrote last, shown when it failed"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlacement:
    """How many processes, and where."""

    here: int
    """on each machine"""
    hosts: tuple[str, ...] = ()
    """the machines, this one first; () for this one alone"""
    launcher: Literal["ssh", "slurm"] = "ssh"
    """starts processes on the others"""
    timeout: float = 600.0
    """seconds that they wait for each other"""
    gpus: int | Literal["auto"] | tuple[int, ...] | None = None
    """machine.gpus, for the others to choose by; None where no GPU is used"""

    @property
    def size(self) -> int:
        return self.here * max(1, len(self.hosts))


def place_ranks(machine: Machine, gpus: str | None, environ: Mapping[str, str]) -> RankPlacement | None:
    """The processes of a run that trains on `gpus` (CUDA_VISIBLE_DEVICES) of this machine, or on its CPU;
    None for a single one.

    Raises ConfigError where there are too few GPUs or machines.
    """
    count = len(gpus.split(",")) if gpus else 0
    here = machine.processes if machine.processes != "auto" else max(1, count)
    if count and here > count:
        raise ConfigError(
            f"machine.processes is {here} and each takes a GPU, but machine.gpus={machine.gpus} takes "
            f"{count}: set machine.gpus={here}, or leave machine.processes out."
        )
    if machine.nodes == 1:
        return RankPlacement(here=here, timeout=machine.timeout) if here > 1 else None
    names, launcher = find_hosts(machine, environ)
    return RankPlacement(
        here=here,
        hosts=names,
        launcher=launcher,
        timeout=machine.timeout,
        gpus=machine.gpus if count else None,
    )


@dataclass(kw_only=True, eq=False)
class Member:
    """One process."""

    rank: int
    host: str | None = None
    """the machine; None for this one"""
    process: "subprocess.Popen[bytes] | None" = None
    """the process here, or what started it on another machine and ends after it"""
    there: int | None = None
    """its exit code on another machine, when that has told it"""
    connection: socket.socket | None = None
    closed: bool = False
    """the connection was there, and is no more"""
    heard: float = field(default_factory=time.monotonic)
    met: int = 0
    """meetings of all that it has come to"""
    waited: float = 0.0
    """seconds in the last of them, when it was heard"""
    told: dict[str, Any] | None = None
    """how it ended: its facts, or an error"""
    ended: float = math.inf
    """when that, or its death, was seen"""
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    """lines that it wrote"""

    @property
    def code(self) -> int | None:
        """Its exit code, once it is known; negative for a signal."""
        return self.there if self.host else self.process.poll() if self.process else None

    @property
    def cut_off(self) -> bool:
        """Nothing comes from its machine any more, and how it ended is not known."""
        return (
            self.host is not None
            and self.there is None
            and self.process is not None
            and self.process.poll() is not None
        )

    def await_code(self) -> None:
        """Give a process that ends the time to do so, and its machine the time to tell how."""
        deadline = time.monotonic() + SETTLE
        while self.code is None and not self.cut_off and time.monotonic() < deadline:
            time.sleep(MOMENT / 10)
        if self.cut_off:
            time.sleep(MOMENT)  # what its machine told last is on its way

    @property
    def failed(self) -> bool:
        """It told of an error, or ended without a word."""
        if self.told is None:
            return self.code is not None or self.cut_off or (self.closed and self.host is not None)
        return "error" in self.told and not issubclass(error_class(self.told), Interrupted)

    @property
    def lost(self) -> bool:
        """It failed since another one was gone or did not come, for which PyTorch aborts a process that
        waits on a GPU.
        """
        return bool(self.told["lost"]) if self.told else self.code == -signal.SIGABRT


def error_class(told: Mapping[str, Any]) -> type[TunerError | Interrupted]:
    """The class of an error that a process told; StageError for one that is none of ours."""
    kind = getattr(errors, told.get("error") or "", StageError)
    return kind if isinstance(kind, type) and issubclass(kind, TunerError | Interrupted) else StageError
