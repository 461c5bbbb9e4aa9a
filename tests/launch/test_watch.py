"""Limits on a process that reads what strangers wrote: what passes them is ended and named, what is large but
honest is read to its end.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.conftest import environment
from tuner.config.schema import Machine
from tuner.data.files.row_files import chunks, count_rows
from tuner.errors import DataError
from tuner.hardware.limits import next_record, reading
from tuner.launch.watch import supervise

MIB = 1 << 20
FEW = Machine(parse_memory=0.1, parse_timeout=1)


def spin(seconds: float) -> None:
    """Use so much CPU time."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def endless() -> int:
    with reading("a template"):
        spin(60)
    return 0


def growing() -> int:
    with reading("a tokenizer"):
        held = [bytes([1]) * MIB for _ in range(4000)]
        time.sleep(60)
    return len(held)


def in_another() -> int:
    with reading("rows.jsonl"), reading("a tokenizer"):
        spin(60)
    return 0


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (endless, "a template: .* CPU time.*machine.parse_timeout"),
        (growing, "a tokenizer: .* memory.*machine.parse_memory"),
        (in_another, "a tokenizer, with rows.jsonl: "),
    ],
)
def test_what_passes_a_limit_is_ended_and_named(work: Callable[[], int], named: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=named):
        supervise(work, FEW)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGKILL])
def test_a_reader_that_dies_is_explained_by_what_it_read(number: signal.Signals) -> None:
    def work() -> int:
        faulthandler.disable()  # which would tell of this process's threads
        with reading("rows.arrow"):
            os.kill(os.getpid(), number)
        return 0

    with pytest.raises(DataError, match=f"rows.arrow: .*{number.name}"):
        supervise(work, FEW)


def test_limits_are_on_a_record_and_hold_only_while_something_is_read() -> None:
    def work() -> int:
        spin(1.5)
        with reading("rows.jsonl"):
            for _ in range(5):
                spin(0.5)
                next_record()
        kept = [bytes([1]) * MIB for _ in range(200)]
        with reading("rows.jsonl"):
            kept += [bytes([1]) * MIB for _ in range(20)]
            time.sleep(0.5)
        return len(kept)

    assert supervise(work, FEW) == 220


def test_what_is_mapped_of_a_file_is_not_memory(tmp_path: Path) -> None:
    """An Arrow file of twice the limit, all of it read."""
    path = tmp_path / "rows.arrow"
    batch = pa.record_batch({"text": ["a" * 1000] * 10_000})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        for _ in range(20):
            writer.write_batch(batch)
    assert path.stat().st_size > 180 * MIB

    def work() -> int:
        return 0 if sum(map(count_rows, chunks(path))) == 200_000 else 1

    assert supervise(work, Machine(parse_memory=0.1)) == 0


def test_a_watched_process_does_not_outlive_who_watches(tmp_path: Path) -> None:
    code = """
import os, sys, time
from tuner.config.schema import Machine
from tuner.launch.watch import supervise

def work():
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(60)
    return 0

supervise(work, Machine())
"""
    told = tmp_path / "process"
    watcher = subprocess.Popen([sys.executable, "-c", code, str(told)], env=environment())
    while not told.exists() or not told.read_text():
        time.sleep(0.01)
    watcher.kill()
    watcher.wait()
    for _ in range(500):
        if not Path(f"/proc/{told.read_text()}").exists():
            return
        time.sleep(0.01)
    raise AssertionError("it goes on")
