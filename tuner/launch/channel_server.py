"""The launcher's ends of the connections to the processes that it started (`channel_client`): it hears how
each of them does, and tells them where they meet.
"""

import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from tuner.launch.channel_client import encode_message, keep_alive
from tuner.launch.members import SETTLE, Member

LOOPBACK = "127.0.0.1"


class ChannelServer:
    """Listens on a port that the kernel chose, until it is closed. What is heard is entered into the
    members by `take`, in the caller's thread.
    """

    def __init__(self, members: Sequence[Member], first: str | None) -> None:
        """
        first    the name by which other machines reach this one; None where there are no others
        """
        self._members, self._first = members, first or LOOPBACK
        self._token = secrets.token_hex(16)
        self._events: SimpleQueue[tuple[Member, dict[str, Any] | socket.socket | None]] = SimpleQueue()
        self._store: int | None = None
        self._listener = socket.create_server(("" if first else LOOPBACK, 0), backlog=2 * len(members))

    def open(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def control(self, timeout: float, *, near: bool) -> dict[str, Any]:
        """What a process, on this machine or not, needs to connect. The token in it is secret."""
        return {
            "host": LOOPBACK if near else self._first,
            "port": self._listener.getsockname()[1],
            "token": self._token,
            "timeout": timeout,
        }

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed: everything has ended
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Pass on what a process says, once it has proved that it is one of ours."""
        member = None
        with (
            suppress(OSError, ValueError, KeyError, TypeError, IndexError, RecursionError),
            connection,
            connection.makefile("rb") as lines,
        ):
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

    def take(self, seconds: float) -> None:
        """Enter what processes say; waits for it so long at most."""
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
        """Tell all where the first one is met. Those of this machine have the address by which the others
        reach it.
        """
        far = next((m.connection for m in self._members if m.host and m.connection), None)
        own = far.getsockname()[0] if far else LOOPBACK
        for member in self._members:
            assert member.connection is not None
            if member.host is None:
                self.send(member, {"go": [LOOPBACK, port, own]})
            else:
                self.send(member, {"go": [self._first, port, member.connection.getpeername()[0]]})

    @staticmethod
    def send(member: Member, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # its end is seen elsewhere
            if member.connection:
                member.connection.sendall(encode_message(message))

    def close(self) -> None:
        with suppress(OSError), self._listener:
            # wakes the thread that accepts connections, which closing does not
            self._listener.shutdown(socket.SHUT_RDWR)
