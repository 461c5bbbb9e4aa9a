"""The connection between a launcher and one rank of its run: a line of JSON for each message.

    process → launcher    {"token", "rank"}       first of all
                          {"store": port}         the first process: where the others meet it
                          {"at": [n, waited]}     each second: it has come to n meetings, and waits in the
                                                  last one for so many seconds
                          {"facts"}, or {"error", "message", "lost"}     how it ended; an error is null where
                                                                         it is a bug
    launcher → process    {"go": [host, port, own]}    where the first one is met, and this process's own
                          address among them
                          {"dump"}                write down where you are
                          {"end"}                 at once

It also ends the process with its launcher: whatever the launcher dies of, the connection closes, and the
process ends a few seconds later. Where its whole machine died or can't be reached, the kernel closes it
within two minutes.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from tuner.errors import Interrupted, StageError

HEARTBEAT = 1.0
"""seconds between two signs of life"""
GRACE = 5.0
"""seconds in which a rank may still save the step at hand when its launcher is gone"""
PEER_LOST_SIGNS = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "timed out",
    "socket closed",
    "connection refused",
    "remote process exited",
    "gloo/",
)
"""in the text of an error: another process is gone, or does not come"""

_channel: "ChannelClient | None" = None


class ChannelClient:
    """This process's end. Ends the process, whatever it does, when the launcher is gone or says so."""

    def __init__(self, host: str, port: int, token: str, rank: int, *, timeout: float) -> None:
        """Raises OSError when there is no launcher."""
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._socket.settimeout(None)
        keep_alive(self._socket)
        self._sending = threading.Lock()
        self._go: SimpleQueue[tuple[str, int, str]] = SimpleQueue()
        self._timeout = timeout
        self._met, self._since = 0, 0.0
        self.tell({"token": token, "rank": rank})
        for target in (self._listen, self._beat):
            threading.Thread(target=target, daemon=True).start()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Nobody may be there to hear it: then this process ends anyway."""
        with self._sending, suppress(OSError):
            self._socket.sendall(encode_message(message))

    def meet(self, port: int | None) -> tuple[str, int, str]:
        """Host and port where the first process is met, which says itself on which port it waits; and this
        one's own address among them.

        Raises StageError when not all came.
        """
        if port is not None:
            self.tell({"store": port})
        try:
            return self._go.get(timeout=self._timeout)
        except Empty:
            raise StageError(
                f"Not all processes of the run were there within {self._timeout:g} s (machine.timeout)."
            ) from TimeoutError("timed out")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a meeting of all processes: by the number of meetings the launcher sees who did not come."""
        self._met, self._since = self._met + 1, time.monotonic()
        yield
        self._since = 0.0

    def _beat(self) -> None:
        while True:
            met, since = self._met, self._since
            self.tell({"at": [met, time.monotonic() - since if since else 0.0]})
            time.sleep(HEARTBEAT)

    def _listen(self) -> None:
        code = Interrupted.exit_code
        with suppress(OSError), self._socket.makefile("rb") as lines:
            for text in lines:
                message = json.loads(text)
                if "go" in message:
                    host, port, own = message["go"]
                    self._go.put((host, port, own))
                elif "dump" in message:
                    faulthandler.dump_traceback(sys.stderr)
                elif "end" in message:
                    os._exit(code)
        time.sleep(GRACE)
        os._exit(code)


def set_channel(channel: ChannelClient) -> None:
    """Keep this process's connection to its launcher, for whoever needs it later."""
    global _channel  # there is one launcher, as there is one parent
    _channel = channel


def current_channel() -> ChannelClient | None:
    """This process's connection to its launcher; None where it trains alone, or was started by something
    else."""
    return _channel


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel close a connection when the other machine has not answered for 90 s, where both are
    silent and where this one speaks (tcp(7)).
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 6),
        ("TCP_USER_TIMEOUT", 90_000),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def encode_message(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone or does not come, which has a reason of
    its own.

    >>> is_peer_lost(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]"))
    True
    >>> is_peer_lost(ValueError("no such row"))
    False
    """
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__.startswith("Dist") or (
            isinstance(seen, RuntimeError | OSError)
            and any(sign in str(seen).lower() for sign in PEER_LOST_SIGNS)
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
