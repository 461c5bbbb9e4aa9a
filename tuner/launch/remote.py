"""Processes on another machine: the command that reaches it, and what runs there.

`python -m tuner.launch.remote` is started there through ssh or srun. It reads what it is to do from standard
input, chooses the GPUs, and starts the processes; these then speak with the launcher themselves.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tuner.errors import StoreError, TunerError
from tuner.hardware.gpus import choose_gpus, gpus_hidden
from tuner.hardware.nvidia_smi import list_gpus
from tuner.launch.channel_client import GRACE, encode_message
from tuner.launch.processes import HOME, start_process

FORWARDED = re.compile(
    r"(NCCL|GLOO|TORCH|PYTORCH|CUDA|OMP|MKL|KMP|DS|UCX|FI)_|(LD_LIBRARY_PATH|HF_HOME|TRITON_CACHE_DIR)\Z"
)
"""names of environment variables that processes on other machines get too"""


SLURM_REQUESTS = (
    "SLURM_GPUS",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPUS_PER_SOCKET",
    "SLURM_TRES_PER_TASK",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK",
)
"""what a job asked for, by the task or as a whole; srun takes them for its own options"""


SEEN = 10.0
"""seconds in which a file that was written on one machine must show on another"""


def remote_command(
    host: str, launcher: Literal["ssh", "slurm"], environ: Mapping[str, str], *, gpus: int = 0
) -> list[str]:
    """The command that starts `python -m tuner.launch.remote` on another machine. Nothing secret is on it:
    anybody may read a command line.

    gpus    how many the processes there take
    """
    agent = [
        "env",
        f"PYTHONPATH={environ.get('PYTHONPATH', HOME)}",
        sys.executable,
        "-m",
        "tuner.launch.remote",
    ]
    if launcher == "ssh":
        options = ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15"]
        return ["ssh", *options, host, f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(agent)}"]
    # All that the allocation has there, beside whatever step this command itself runs in. What the job asked
    # for by task, a step of one task would
    # get for one task, and what it asked for as a whole it would want from one machine.
    unset = [word for name in SLURM_REQUESTS if name in environ for word in ("-u", name)]
    share = (
        [f"--gpus-per-node={environ.get('SLURM_GPUS_ON_NODE') or gpus}"]
        if gpus and any("GPU" in name or "TRES" in name for name in unset)
        else []
    )
    step = [
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={host}",
        "--overlap",
        "--mem=0",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        *share,
    ]
    return [*(["env", *unset] if unset else []), "srun", *step, *agent]


def forwarded_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What processes on other machines get of this one's environment. Which GPUs are visible is each
    machine's own affair.
    """
    return {
        name: value
        for name, value in environ.items()
        if FORWARDED.match(name) and name != "CUDA_VISIBLE_DEVICES"
    }


def main() -> int:
    """Start this machine's processes, and end when they have.

    Standard input has a line of JSON, and stays open. An error for people, and each one's exit code, are
    lines of JSON on standard output.
    """
    # Slurm sends these to all that a job has, before its time is over or when it is cancelled. The processes
    # of the run know what to do.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _ignore_signal)
    given = json.loads(sys.stdin.readline())
    environ, count, first = {**os.environ, **given["environ"]}, given["count"], given["first"]
    try:
        if missing := missing_path(given["job"], Path(given["sign"])):
            raise StoreError(
                f"{missing} is not there, or not the same: all machines must see the store, the model and "
                "the data at the same paths."
            )
        wish = tuple(given["gpus"]) if isinstance(given["gpus"], list) else given["gpus"]
        if (
            wish is not None
            and not gpus_hidden(environ)
            and (chosen := choose_gpus(wish, list_gpus(), environ))
        ):
            environ["CUDA_VISIBLE_DEVICES"] = chosen
    except TunerError as error:
        _send({"error": type(error).__name__, "message": f"On {given['host']}: {error}"})
        return error.exit_code
    children = [
        start_process(
            given["job"],
            given["control"],
            first + local,
            local,
            size=given["size"],
            count=count,
            environ=environ,
        )
        for local in range(count)
    ]
    threads = [
        threading.Thread(target=_forward_output, args=(child, first + local))
        for local, child in enumerate(children)
    ]
    for thread in (*threads, threading.Thread(target=_end_with_launcher, args=(children,), daemon=True)):
        thread.start()
    for thread in threads:
        thread.join()
    return 1 if any(child.returncode for child in children) else 0


def _end_with_launcher(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Standard input ends with the launcher, or when it wants all to end. What has not ended by itself a
    little later, since it is stopped, is killed.
    """
    while os.read(sys.stdin.fileno(), 4096):
        pass
    time.sleep(GRACE + 1.0)
    for child in children:
        child.kill()


def _ignore_signal(_number: int, _frame: FrameType | None) -> None:
    """Go on. A handler, since children would inherit that it is ignored."""


def missing_path(job: Mapping[str, Any], sign: Path) -> Path | None:
    """What a job needs and this machine has not: its directory with the sign that the launcher has just
    put into it, or what it reads.
    """
    needed = [
        Path(path) for given in job["inputs"].values() for path in (given["dir"], *given["files"].values())
    ]
    for _ in range(int(SEEN / 0.2)):
        if sign.exists():
            return next((path for path in needed if not path.exists()), None)
        time.sleep(0.2)
    return sign.parent


def _forward_output(child: "subprocess.Popen[bytes]", rank: int) -> None:
    """Pass on what a process writes, line by line, with its number before it; and say how it ended."""
    assert child.stderr is not None
    # nobody listens any more; the process itself learns of it by its connection
    with suppress(BrokenPipeError):
        for text in child.stderr:
            sys.stderr.buffer.write(f"[rank {rank}] ".encode() + text.rstrip(b"\r\n") + b"\n")
            sys.stderr.buffer.flush()
    code = child.wait()
    with suppress(BrokenPipeError):
        _send({"rank": rank, "code": code})


def _send(message: Mapping[str, Any]) -> None:
    os.write(sys.stdout.fileno(), encode_message(message))  # at once, so that two don't mix


if __name__ == "__main__":
    sys.exit(main())
