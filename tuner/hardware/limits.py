"""What strangers wrote is read under limits of memory and CPU time, by a process that another one watches
(`tuner.launch.watch`). Here a process says what it is reading, in memory that both share.

    with reading("tokenizer.json"):     from here on the limits hold
        for row in rows:
            next_record()               and anew for each record

A limit is on one record and never on a total: a set of any size passes. Where nobody watches, nothing is
said, and no limit holds but that of a row's length.
"""

import mmap
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from tuner.errors import DataError
from tuner.hardware.mistakes import fault_of

T = TypeVar("T")

WATCHED = "TUNER_WATCHED"
"""in a process's environment: the descriptor of the shared memory, and this process's place in it"""
ROW_LIMIT = "TUNER_ROW_LIMIT"
"""in a process's environment: the longest row, in MiB"""
ROW = 64
"""that limit where nothing says another, in MiB"""
PLACES = 1 + 1024
"""a stage's process, and as many that tokenize as machine.workers allows"""
SIZE = 1024
"""bytes of a place"""
HEAD = struct.Struct("=iiQH")
"""process, how many things in each other it reads, records so far, bytes of what is read, which follows"""
RECORD, RECORD_AT = struct.Struct("=Q"), 8
"""the third of them alone, and where it stands"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a process is at."""

    process: int
    record: int
    what: str


class Board:
    """The memory in which processes say what they are reading, a place for each."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, PLACES * SIZE)

    @classmethod
    def new(cls) -> "Board":
        """One of our own, to be handed down by its descriptor. It takes no place on a disk, but where the
        system has no such memory.
        """
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("tuner")
        else:
            with TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, PLACES * SIZE)
        return cls(descriptor)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)

    def taken(self) -> Iterator[int]:
        """The places of processes that have begun."""
        for place in range(PLACES):
            if not HEAD.unpack_from(self._memory, place * SIZE)[0]:
                return
            yield place

    def look(self, place: int) -> Reading | None:
        """What the process at a place is reading; None where it reads nothing of strangers."""
        process, depth, record, length = HEAD.unpack_from(self._memory, place * SIZE)
        if not depth:
            return None
        at = place * SIZE + HEAD.size
        what = self._memory[at : at + length].decode("utf-8", "replace")
        return Reading(process=process, record=record, what=what)

    def write(self, place: int, record: int, what: list[str]) -> None:
        text = ", with ".join(reversed(what)).encode("utf-8", "replace")[: SIZE - HEAD.size]
        at = place * SIZE
        self._memory[at + HEAD.size : at + HEAD.size + len(text)] = text
        HEAD.pack_into(self._memory, at, os.getpid(), len(what), record, len(text))

    def count(self, place: int, record: int) -> None:
        """Another record of the same."""
        RECORD.pack_into(self._memory, place * SIZE + RECORD_AT, record)


class _Reader:
    """This process, and its place on the board that it was started with; without one nobody watches."""

    def __init__(self, board: Board | None, place: int) -> None:
        self.board, self.place = board, place
        self.record = 0
        self.what: list[str] = []

    @classmethod
    def of_environment(cls) -> "_Reader":
        descriptor, _, place = os.environ.get(WATCHED, "").partition(":")
        with suppress(OSError, ValueError):  # not inherited: something in between has started this process
            return cls(Board(int(descriptor)), int(place))
        return cls(None, 0)

    def tell(self, *, anew: bool) -> None:
        """Write down what is read, and whether it is a new record."""
        self.record += anew
        if self.board is not None:
            self.board.write(self.place, self.record, self.what)


_reader = _Reader.of_environment()


def watch_self(board: Board) -> None:
    """Say on `board` from now on what this process, which was just forked, is reading."""
    global _reader  # a process has one place
    _reader = _Reader(board, 0)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """While `what`, a stranger's, is read; inside of another it is of the same record. An error that comes up
    meanwhile is its fault (`fault_of`).
    """
    reader = _reader
    inside = bool(reader.what)
    reader.what.append(what)
    reader.tell(anew=not inside)
    try:
        with fault_of(what):
            yield
    finally:
        reader.what.pop()
        reader.tell(anew=not inside)


def next_record() -> None:
    """The limits hold anew: another record of what is read."""
    _reader.record += 1
    if _reader.board is not None:
        _reader.board.count(_reader.place, _reader.record)


def read_each(what: str, items: Iterator[T]) -> Iterator[T]:
    """The items, each made while `what` is read."""
    while True:
        with reading(what):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def environment_of(place: int) -> dict[str, str]:
    """For a process that this one starts with `descriptors()`: its place on this one's board."""
    return {} if _reader.board is None else {WATCHED: f"{_reader.board.descriptor}:{place}"}


def descriptors() -> tuple[int, ...]:
    """What a process that this one starts must inherit to be watched."""
    return () if _reader.board is None else (_reader.board.descriptor,)


def why_ended(place: int, code: int, board: Board | None = None) -> DataError | None:
    """Why the process at a place, of this one's board or another, has ended with `code`, where a signal ended
    it while it read something.
    """
    board = board or _reader.board
    found = board.look(place) if board else None
    if found is None or code >= 0 or -code in (signal.SIGTERM, signal.SIGINT):
        return None
    name = signal.Signals(-code).name
    out = " When nobody did it, the machine ran out of memory." if code == -signal.SIGKILL else ""
    return DataError(
        f"{found.what}: the process that read it was ended by {name}.{out} The file is damaged, or was made "
        "to do that. Get it again, or leave it out."
    )


def row_limit() -> int:
    """The bytes that one row of a file, or one cell of a table, may have."""
    return int(float(os.environ.get(ROW_LIMIT) or ROW) * (1 << 20))


def memory_of(process: int) -> int | None:
    """Bytes of private memory that a process has written to (proc_pid_status(5)); None where that can't be
    told. What it maps of files is not counted.
    """
    fields = _read(f"/proc/{process}/status").partition("RssAnon:")[2].split()
    return 1024 * int(fields[0]) if fields else None


def cpu_seconds(process: int) -> float | None:
    """The CPU time that a process has used (proc_pid_stat(5)); None where that can't be told."""
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended, or this is no Linux
        return ""
