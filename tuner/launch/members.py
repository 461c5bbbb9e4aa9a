"""The processes that train together, as far as their launcher knows them, and the verdict on what went wrong
with them.

What one of them dies of is told, and not the trouble that its death makes for the others: these lose a
connection, or wait in vain.
"""

import math
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    """The processes of a training that computes on `gpus` (CUDA_VISIBLE_DEVICES) of this machine, or on its
    processor; None for a single one.

    Raises ConfigError where there are too few GPUs or machines.
    """
    cards = len(gpus.split(",")) if gpus else 0
    here = machine.processes if machine.processes != "auto" else max(1, cards)
    if cards and here > cards:
        raise ConfigError(
            f"machine.processes is {here} and each takes a GPU, but machine.gpus={machine.gpus} takes "
            f"{cards}: set machine.gpus={here}, or leave machine.processes out."
        )
    if machine.nodes == 1:
        return RankPlacement(here=here, timeout=machine.timeout) if here > 1 else None
    names, launcher = find_hosts(machine, environ)
    return RankPlacement(
        here=here,
        hosts=names,
        launcher=launcher,
        timeout=machine.timeout,
        gpus=machine.gpus if cards else None,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a training of several processes can't go on."""

    dead: Member | None = None
    """the one that failed first, of its own"""
    late: Sequence[Member] = ()
    """or those that the others wait for in vain"""
    why: str = ""
    """what `late` did not do"""


def find_failure(members: Sequence[Member], now: float, timeout: float) -> Failure | None:
    """Who ended the training, or keeps it from going on; None as long as all is well, or the cause may still
    show.

    timeout    seconds that processes wait for each other
    """
    for member in members:
        if member.failed:
            member.ended = min(member.ended, now)
    failed = sorted((m for m in members if m.failed), key=lambda m: m.ended)
    if own := [m for m in failed if not m.lost]:
        return Failure(dead=own[0]) if now - own[0].ended > MOMENT else None
    going = [m for m in members if m.told is None and not m.failed]
    if silent := [m for m in going if now - m.heard > timeout]:
        return Failure(late=silent, why="was not heard")
    furthest = max((m.met for m in going if m.waited > timeout), default=0)
    if behind := [m for m in going if m.met < furthest]:
        return Failure(late=behind, why="did not come to where the others waited")
    # all that waited have given up, and those that did not wait go on
    if failed and now - failed[0].ended > SETTLE:
        return (
            Failure(late=going, why="did not come to where the others waited")
            if going
            else Failure(dead=failed[0])
        )
    return None


def error_class(told: Mapping[str, Any]) -> type[TunerError]:
    """The class of an error that a process told; StageError for one that is none of ours."""
    kind = getattr(errors, told.get("error") or "", StageError)
    return kind if isinstance(kind, type) and issubclass(kind, TunerError) else StageError


def exit_error(who: str, code: int | None) -> TunerError:
    """The end of a process that told nothing, from its exit code, where that is known; it is negative for
    a signal.
    """
    if code in (-signal.SIGTERM, -signal.SIGINT):
        return Interrupted(f"{who} was stopped; run the same command again to go on.")
    if code == -signal.SIGKILL:
        return StageError(
            f"{who} was killed (SIGKILL). When nobody did it, the machine ran out of memory: make "
            "data.length or machine.micro_batch smaller. The same command goes on from the last "
            "checkpoint."
        )
    how = (
        "ended without a word"
        if code is None
        else f"died of {signal.Signals(-code).name}"
        if code < 0
        else f"ended with code {code}"
    )
    return StageError(f"{who} failed: its process {how}; the reason stands above and in the run's log.")


def lost_machine_error(stage: str, called: str, member: Member, tool: str) -> StageError:
    """The end of a process on another machine from which nothing comes any more. `tool` started it there."""
    code = member.process.poll() if member.process else None
    ended = f"{tool} still waits" if code is None else f"{tool} ended with code {code}"
    if not member.connection:
        mend = (
            "It must be reached without a password, and Python, tuner and the store be at the same paths "
            "there."
        )
        return StageError(
            f"{stage} was not started on {member.host}: {ended}; what it said stands above. {mend}"
        )
    return StageError(
        f"{stage} lost {called}: the connection broke, and {ended}. That machine is down, or can't be "
        "reached any more. The same command goes on from the last checkpoint."
    )


def is_suspended(member: Member) -> bool:
    """Whether a process of this machine is stopped by a signal, where the system tells (proc_pid_stat(5))."""
    if member.host or not member.process:
        return False
    try:
        stat = Path(f"/proc/{member.process.pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])
