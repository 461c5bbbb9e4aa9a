"""The launcher's side of a run in several processes: they are started together, watched, and ended
together.

Each keeps a connection to the launcher (`channel_client`), by which it is known where they meet, that each is
alive, and whether one does not come where the others wait.
"""

import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tuner.errors import Interrupted, StageError, TunerError
from tuner.launch.channel_server import ChannelServer
from tuner.launch.failures import (
    Failure,
    ended_at_once,
    exit_error,
    find_failure,
    is_suspended,
    lost_machine_error,
)
from tuner.launch.members import MOMENT, SETTLE, Member, RankPlacement, error_class
from tuner.launch.processes import start_process
from tuner.launch.remote import forwarded_environment, remote_command
from tuner.launch.signals import answer_stop, count_signals

LOOK, PATIENCE = 0.2, 20.0
"""seconds between two looks at the processes, and until one that should end by itself is killed"""


class Group:
    """The processes of one run, from their start to the end of the last."""

    def __init__(
        self,
        job: Mapping[str, Any],
        ranks: RankPlacement,
        *,
        locks: Sequence[int],
        environ: Mapping[str, str],
        log: Callable[[str], None],
    ) -> None:
        """
        job      what each process reads from standard input
        locks    descriptors that the processes of this machine inherit
        environ  their environment
        log      gets what all but the first write, line by line
        """
        self._job, self._ranks, self._locks, self._environ, self._log = job, ranks, locks, environ, log
        self._stage = str(job["stage"])
        self._members = [
            Member(rank=rank, host=ranks.hosts[rank // ranks.here] if rank >= ranks.here else None)
            for rank in range(ranks.size)
        ]
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._readers: list[threading.Thread] = []
        self._server = ChannelServer(
            self._members, ranks.hosts[0].rpartition("@")[2] if len(ranks.hosts) > 1 else None
        )
        # A name that no machine has asked its file server for yet. What begins with a dot is never published.
        self._sign = Path(job["out"]) / f".seen-{secrets.token_hex(8)}" if len(ranks.hosts) > 1 else None

    def run(self) -> dict[str, Any]:
        """Start them, wait for all, and return the first one's facts. None is left when this returns or
        raises.

        Raises what one of them told, StageError when one died, hangs, or can't be started, Interrupted when a
        signal stopped them.
        """
        with count_signals() as signals:
            try:
                self._start()
                error = self._watch(signals)
            finally:
                self._end()
        if error:
            raise error
        facts: dict[str, Any] = (self._members[0].told or {})["facts"]
        return facts

    def _start(self) -> None:
        self._server.open()
        ranks, near = self._ranks, self._server.control(self._ranks.timeout, near=True)
        for member in self._members[: ranks.here]:
            member.process = start_process(
                self._job,
                near,
                member.rank,
                member.rank,
                size=ranks.size,
                count=ranks.here,
                environ=self._environ,
                locks=self._locks,
            )
            if member.process.stderr:
                self._read(member.process.stderr, lambda text, member=member: self._wrote(member, text))  # type: ignore[misc]
        if self._sign:
            self._sign.touch()
        for node, host in enumerate(ranks.hosts[1:], 1):
            self._start_on(host, node * ranks.here)

    def _start_on(self, host: str, first: int) -> None:
        """Start the processes of another machine, of which `first` is the first."""
        ranks = self._ranks
        # A session of its own: Ctrl-C in the terminal is for this process alone, which then tells the others.
        agent = subprocess.Popen(
            remote_command(
                host, ranks.launcher, self._environ, gpus=ranks.here if ranks.gpus is not None else 0
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._agents[host] = agent
        for member in self._of(host):
            member.process = agent
        assert agent.stderr is not None
        assert agent.stdout is not None
        self._read(agent.stderr, lambda text: self._agent_wrote(host, text))
        self._read(agent.stdout, lambda text: self._agent_told(host, text))
        given = {
            "job": self._job,
            "control": self._server.control(ranks.timeout, near=False),
            "first": first,
            "count": ranks.here,
            "size": ranks.size,
            "environ": forwarded_environment(self._environ),
            "gpus": ranks.gpus,
            "host": host,
            "sign": str(self._sign),
        }
        assert agent.stdin is not None
        with suppress(BrokenPipeError):  # its exit code tells why
            agent.stdin.write(json.dumps(given).encode() + b"\n")
            agent.stdin.flush()

    def _of(self, host: str) -> list[Member]:
        return [member for member in self._members if member.host == host]

    def _read(self, stream: IO[bytes], take: Callable[[str], None]) -> None:
        def read() -> None:
            with stream:
                for text in stream:
                    take(text.decode(errors="replace").rstrip("\r\n"))

        self._readers.append(threading.Thread(target=read, daemon=True))
        self._readers[-1].start()

    def _wrote(self, member: Member, text: str) -> None:
        member.last.append(text)
        self._log(f"  [rank {member.rank}] {text}")

    def _agent_wrote(self, host: str, text: str) -> None:
        """`[rank 9] …` is of a process there, anything else of ssh, srun or the agent itself."""
        word, _, rest = text.partition("] ")
        number = word.removeprefix("[rank ")
        if word != number and number.isdecimal() and int(number) < len(self._members):
            self._wrote(self._members[int(number)], rest)
            return
        for member in self._of(host):
            member.last.append(text)
        self._log(f"  [{host}] {text}")

    def _agent_told(self, host: str, text: str) -> None:
        # what a login shell has printed is none of it
        with suppress(ValueError, KeyError, IndexError, TypeError):
            answer = json.loads(text)
            if "error" in answer:
                self._answers[host] = answer
            else:
                self._members[answer["rank"]].there = int(answer["code"])

    def _watch(self, signals: list[int]) -> TunerError | Interrupted | None:
        """Wait until all have ended as they should, or it is known why they don't, which is returned."""
        passed_on, looked = False, time.monotonic()
        while True:
            self._server.take(LOOK)
            now = time.monotonic()
            if now - looked > SETTLE:  # this process slept, as after Ctrl-Z, and heard nobody meanwhile
                for member in self._members:
                    member.heard = now
            looked = now
            if len(signals) > 1:
                return ended_at_once(self._stage)
            first = self._members[0].process
            if signals and not passed_on and first:
                first.send_signal(signal.SIGTERM)  # it tells the others, and all stop after the same step
                passed_on = True
                answer_stop(self._stage, self._log)
            told = [member.told for member in self._members if member.told and not member.failed]
            if len(told) == len(self._members):
                self._await_ends()
                if stop := next((answer for answer in told if "error" in answer), None):
                    return error_class(stop)(stop["message"])
                return (
                    Interrupted(f"Stopped after {self._stage}; run the same command again to go on.")
                    if signals
                    else None
                )
            if failure := find_failure(self._members, now, self._ranks.timeout):
                return (
                    self._hang_error(failure) if failure.dead is None else self._failure_error(failure.dead)
                )

    def _called(self, member: Member) -> str:
        return f"rank {member.rank} of {len(self._members)}" + (f" on {member.host}" if member.host else "")

    def _hang_error(self, failure: Failure) -> StageError:
        """Have those that hang write down where they are, and say who they are."""
        still = "; SIGSTOP has stopped it" if any(is_suspended(member) for member in failure.late) else ""
        for member in failure.late:
            if member.host:
                self._server.send(member, {"dump": True})
            elif member.process:
                member.process.send_signal(signal.SIGUSR1)  # answered even where Python is busy
        time.sleep(2 * MOMENT)
        names = " and ".join(self._called(member) for member in failure.late)
        return StageError(
            f"{self._stage} hangs: {names} {failure.why} for {self._ranks.timeout:g} s "
            f"(machine.timeout{still}). All were ended. Where it was stands in the run's log, if it could "
            "still tell. The same command goes on from the last checkpoint."
        )

    def _failure_error(self, member: Member) -> TunerError | Interrupted:
        """Why a process failed. What it wrote last is shown, unless the terminal has it already."""
        called = self._called(member)
        if member.told and member.told["error"]:
            everywhere = all(
                m.told and m.told.get("message") == member.told["message"] for m in self._members
            )
            own = (
                member.told["message"]
                if everywhere or not member.rank
                else f"{called.capitalize()}: {member.told['message']}"
            )
            return error_class(member.told)(own)
        member.await_code()
        if member.told is None and member.host in self._answers:
            return error_class(self._answers[member.host])(self._answers[member.host]["message"])
        time.sleep(MOMENT)  # its last lines are on their way
        for text in member.last:
            print(f"  [rank {member.rank}] {text}", file=sys.stderr, flush=True)
        if member.told:
            return StageError(
                f"{self._stage} failed: {called} ended with {member.told['message']}; more stands above and "
                "in the run's log."
            )
        if member.host and member.there is None:
            return lost_machine_error(
                self._stage, called, member, "ssh" if self._ranks.launcher == "ssh" else "srun"
            )
        return exit_error(f"{called[0].upper()}{called[1:]} of {self._stage}", member.code)

    def _await_ends(self) -> None:
        deadline = time.monotonic() + PATIENCE
        for member in self._members:
            with suppress(subprocess.TimeoutExpired):
                if member.process:
                    member.process.wait(max(0.0, deadline - time.monotonic()))

    def _end(self) -> None:
        """End what is left, and return when it has ended: then the lock is free, and nobody writes."""
        for member in self._members:
            self._server.send(member, {"end": True})
            if member.process and not member.host:
                member.process.kill()
        for agent in self._agents.values():
            with suppress(BrokenPipeError):
                if agent.stdin:
                    agent.stdin.close()  # it kills those that don't end
        for agent in self._agents.values():
            for ask in (agent.terminate, agent.kill):
                try:
                    agent.wait(PATIENCE / 2)
                    break
                except subprocess.TimeoutExpired:
                    ask()
        for member in self._members:
            if member.process:
                member.process.wait()
        for reader in self._readers:
            reader.join(2 * MOMENT)  # what a process has started may keep its pipe open
        self._server.close()
        if self._sign:
            self._sign.unlink(missing_ok=True)
