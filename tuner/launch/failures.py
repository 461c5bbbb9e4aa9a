"""Why the processes of a run can't go on, and the errors that say so.

The process that failed first is named, and not what its death does to the others: these lose a connection, or
wait in vain.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import Interrupted, StageError, TunerError
from tuner.launch.members import MOMENT, SETTLE, Member


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a run of several processes can't go on."""

    dead: Member | None = None
    """the one that failed first, of its own"""
    late: Sequence[Member] = ()
    """or those that the others wait for in vain"""
    why: str = ""
    """what `late` did not do"""


def find_failure(members: Sequence[Member], now: float, timeout: float) -> Failure | None:
    """Who ended the run, or keeps it from going on; None as long as all is well, or the cause may still
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


def ended_at_once(stage: str) -> Interrupted:
    """The end of a stage that was asked to stop a second time."""
    return Interrupted(
        f"{stage} was ended at once; the same command goes on from what was saved last, if anything was."
    )


def exit_error(who: str, code: int | None) -> TunerError | Interrupted:
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
