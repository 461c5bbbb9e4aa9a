"""How one of several processes of a run is started on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HOME = str(Path(__file__).resolve().parents[2])


WORKER = "tuner.stages.worker"


def start_process(
    job: Mapping[str, Any],
    control: Mapping[str, Any],
    rank: int,
    local: int,
    *,
    size: int,
    count: int,
    environ: Mapping[str, str],
    locks: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a process of a run on this machine, the `local`-th of `count` here. The first of all
    speaks on the terminal, the others into a pipe.
    """
    numbers = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": count}
    child = subprocess.Popen(
        [sys.executable, "-m", job["module"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if rank else None,
        pass_fds=locks,
        env={**environ, **{name: str(number) for name, number in numbers.items()}},
    )
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin:  # it has died already, which its exit code says
        child.stdin.write(json.dumps({**job, "parent": os.getpid(), "control": dict(control)}).encode())
    return child
