"""The launcher's side of a training in several processes: they are started together, watched, and ended together.

Each keeps a connection to the launcher (`leash`), by which it is known where they meet, that each is alive, and whether one does not come where the
others wait.
"""

import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Any

from tuner.errors import Interrupted, StageError, TunerError
from tuner.leash import keep_alive, line
from tuner.nodes import carried, reach, start
from tuner.ranks import MOMENT, SETTLE, Member, Ranks, Verdict, death, judge, kind_of, stopped

LOOK, PATIENCE = 0.2, 20.0
"""seconds between two looks at the processes, and until one that should end by itself is killed"""
LOOPBACK = "127.0.0.1"


class Group:
    """The processes of one training, from their start to the end of the last."""

    def __init__(self, job: Mapping[str, Any], ranks: Ranks, *, locks: Sequence[int], environ: Mapping[str, str], log: Callable[[str], None]) -> None:
        """
        job      what each process reads from standard input
        locks    descriptors that the processes of this machine inherit
        environ  their environment
        log      gets what all but the first write, line by line
        """
        self._job, self._ranks, self._locks, self._environ, self._log = job, ranks, locks, environ, log
        self._stage, self._token = str(job["stage"]), secrets.token_hex(16)
        self._members = [Member(rank=rank, host=ranks.hosts[rank // ranks.here] if rank >= ranks.here else None) for rank in range(ranks.size)]
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._events: SimpleQueue[tuple[Member, dict[str, Any] | socket.socket | None]] = SimpleQueue()
        self._readers: list[threading.Thread] = []
        self._store: int | None = None
        self._listener = socket.create_server((LOOPBACK if len(ranks.hosts) < 2 else "", 0), backlog=2 * ranks.size)

    def run(self) -> dict[str, Any]:
        """Start them, wait for all, and return the first one's facts. None is left when this returns or raises.

        Raises what one of them told, StageError when one died, hangs, or can't be started, Interrupted when a signal stopped them.
        """
        with _counted() as signals:
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
        threading.Thread(target=self._accept, daemon=True).start()
        ranks, port = self._ranks, self._listener.getsockname()[1]
        control = {"host": LOOPBACK, "port": port, "token": self._token, "timeout": ranks.timeout}
        for member in self._members[: ranks.here]:
            member.process = start(
                self._job, control, member.rank, member.rank, size=ranks.size, count=ranks.here, environ=self._environ, locks=self._locks
            )
            if member.process.stderr:
                self._read(member.process.stderr, lambda text, member=member: self._wrote(member, text))  # type: ignore[misc]
        for node, host in enumerate(ranks.hosts[1:], 1):
            # A session of its own: Ctrl-C in the terminal is for this process alone, which then tells the others.
            agent = subprocess.Popen(
                reach(host, ranks.launcher, self._environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._agents[host] = agent
            for member in self._of(host):
                member.process = agent
            assert agent.stderr is not None
            self._read(agent.stderr, lambda text, host=host: self._agent_wrote(host, text))  # type: ignore[misc]
            given = {
                "job": self._job, "control": control | {"host": ranks.hosts[0].rpartition("@")[2]}, "first": node * ranks.here, "count": ranks.here,
                "size": ranks.size, "environ": carried(self._environ), "gpus": ranks.gpus, "host": host,
            }  # fmt: skip
            assert agent.stdin is not None
            with suppress(BrokenPipeError), agent.stdin:  # its exit code tells why
                agent.stdin.write(json.dumps(given).encode())

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

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed: everything has ended
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Pass on what a process says, once it has proved that it is one of ours."""
        member = None
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError, RecursionError), connection, connection.makefile("rb") as lines:
            connection.settimeout(SETTLE)
            first = json.loads(lines.readline(1000))
            if not secrets.compare_digest(str(first["token"]).encode(), self._token.encode()):
                return
            member = self._members[int(first["rank"])]
            connection.settimeout(None)
            keep_alive(connection)
            self._events.put((member, connection))
            for text in lines:
                self._events.put((member, json.loads(text)))
        if member:
            self._events.put((member, None))

    def _watch(self, signals: list[int]) -> TunerError | None:
        """Wait until all have ended as they should, or it is known why they don't, which is returned."""
        passed_on, looked = False, time.monotonic()
        while True:
            self._take(LOOK)
            now = time.monotonic()
            if now - looked > SETTLE:  # this process slept, as after Ctrl-Z, and heard nobody meanwhile
                for member in self._members:
                    member.heard = now
            looked = now
            if len(signals) > 1:
                return Interrupted(f"{self._stage} was ended at once; the same command goes on from the last checkpoint.")
            first = self._members[0].process
            if signals and not passed_on and first:
                first.send_signal(signal.SIGTERM)  # it tells the others, and all stop after the same step
                passed_on = True
            told = [member.told for member in self._members if member.told and not member.failed]
            if len(told) == len(self._members):
                self._await_ends()
                if stop := next((answer for answer in told if "error" in answer), None):
                    return kind_of(stop)(stop["message"])
                return Interrupted(f"Stopped after {self._stage}; run the same command again to go on.") if signals else None
            if verdict := judge(self._members, now, self._ranks.timeout):
                return self._hanging(verdict) if verdict.dead is None else self._obituary(verdict.dead)

    def _take(self, seconds: float) -> None:
        """What processes say; waits for it so long at most."""
        with suppress(Empty):
            while True:
                member, event = self._events.get(timeout=seconds)
                seconds = 0.001
                member.heard = time.monotonic()
                if event is None:
                    member.closed = True
                elif isinstance(event, socket.socket):
                    member.connection = event
                elif "at" in event:
                    member.met, member.waited = event["at"]
                elif "store" in event:
                    self._store = event["store"]
                else:
                    member.told, member.ended = event, member.heard
                if self._store is not None and all(m.connection for m in self._members):
                    self._introduce(self._store)
                    self._store = None

    def _introduce(self, port: int) -> None:
        """Tell all where the first one is met. Those of this machine have the address by which the others reach it."""
        far = next((m.connection for m in self._members if m.host and m.connection), None)
        own = far.getsockname()[0] if far else LOOPBACK
        for member in self._members:
            assert member.connection is not None
            if member.host is None:
                self._send(member, {"go": [LOOPBACK, port, own]})
            else:
                self._send(member, {"go": [self._ranks.hosts[0].rpartition("@")[2], port, member.connection.getpeername()[0]]})

    @staticmethod
    def _send(member: Member, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # its end is seen elsewhere
            if member.connection:
                member.connection.sendall(line(message))

    def _called(self, member: Member) -> str:
        return f"rank {member.rank} of {len(self._members)}" + (f" on {member.host}" if member.host else "")

    def _hanging(self, verdict: Verdict) -> StageError:
        """Have those that hang write down where they are, and say who they are."""
        still = "; SIGSTOP has stopped it" if any(stopped(member) for member in verdict.late) else ""
        for member in verdict.late:
            if member.host:
                self._send(member, {"dump": True})
            elif member.process:
                member.process.send_signal(signal.SIGUSR1)  # answered even where Python is busy
        time.sleep(2 * MOMENT)
        names = " and ".join(self._called(member) for member in verdict.late)
        return StageError(
            f"{self._stage} hangs: {names} {verdict.why} for {self._ranks.timeout:g} s (machine.timeout{still}). All were ended. Where it was stands in the "
            "run's log, if it could still tell. The same command goes on from the last checkpoint."
        )

    def _obituary(self, member: Member) -> TunerError:
        """Why a process failed. What it wrote last is shown, unless the terminal has it already."""
        called = self._called(member)
        if member.told and member.told["error"]:
            everywhere = all(m.told and m.told.get("message") == member.told["message"] for m in self._members)
            own = member.told["message"] if everywhere or not member.rank else f"{called.capitalize()}: {member.told['message']}"
            return kind_of(member.told)(own)
        with suppress(subprocess.TimeoutExpired):
            if member.process:
                member.process.wait(SETTLE)
        if member.told is None and member.host and (answer := _answer(self._agents[member.host])):
            return kind_of(answer)(answer["message"])
        time.sleep(MOMENT)  # its last lines are on their way
        for text in member.last:
            print(f"  [rank {member.rank}] {text}", file=sys.stderr, flush=True)
        if member.told:
            return StageError(f"{self._stage} failed: {called} ended with {member.told['message']}; more stands above and in the run's log.")
        if member.host and not member.connection:
            tool = "ssh" if self._ranks.launcher == "ssh" else "srun"
            mend = "It must be reached without a password, and Python, tuner and the store be at the same paths there."
            return StageError(
                f"{self._stage} was not started on {member.host}: {tool} ended with code {member.code}; what it said stands above. {mend}"
            )
        return death(f"{called[0].upper()}{called[1:]} of {self._stage}", None if member.host else member.code)

    def _await_ends(self) -> None:
        deadline = time.monotonic() + PATIENCE
        for member in self._members:
            with suppress(subprocess.TimeoutExpired):
                if member.process:
                    member.process.wait(max(0.0, deadline - time.monotonic()))

    def _end(self) -> None:
        """End what is left, and return when it has ended: then the lock is free, and nobody writes."""
        for member in self._members:
            self._send(member, {"end": True})
            if member.process and not member.host:
                member.process.kill()
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
        for agent in self._agents.values():
            if agent.stdout:
                agent.stdout.close()
        with suppress(OSError), self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts connections, which closing does not


def _answer(agent: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """The error for people that an agent has told, once it has ended."""
    if agent.poll() is None or agent.stdout is None:
        return None
    try:
        answer: dict[str, Any] = json.loads(agent.stdout.read())
    except ValueError:
        return None
    return answer


@contextmanager
def _counted() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, as they come. Where this is not the main thread, that one gets them."""
    came: list[int] = []

    def count(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in heard}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # a shell that starts a command in the background has it ignore Ctrl-C
            signal.signal(number, count)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
