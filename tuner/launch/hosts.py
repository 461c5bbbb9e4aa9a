"""The machines that train together: which they are, and how processes are started on this one and on another.

On another machine one command, `python -m tuner.launch.hosts`, is started through ssh or srun. It reads what
it is to do from standard input, chooses the GPUs there, and starts the processes; these then speak with the
launcher themselves.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tuner.config.schema import Machine
from tuner.errors import ConfigError, StoreError, TunerError
from tuner.hardware.gpus import choose_gpus, gpus_hidden, list_gpus
from tuner.launch.channel_client import GRACE, encode_message

HOME = str(Path(__file__).resolve().parents[2])
WORKER = "tuner.stages.worker"
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


def find_hosts(
    machine: Machine, environ: Mapping[str, str]
) -> tuple[tuple[str, ...], Literal["ssh", "slurm"]]:
    """The machines that train together, this one first, and what starts processes on the others. Raises
    ConfigError when they can't be told.
    """
    inside = "SLURM_JOB_ID" in environ
    slurm = machine.launcher == "slurm" or (
        machine.launcher == "auto" and inside and machine.hostfile is None
    )
    if machine.launcher == "local":
        raise ConfigError(
            "machine.launcher=local starts processes on this machine only, and machine.nodes is "
            f"{machine.nodes}: leave one of them out."
        )
    if slurm and not inside:
        raise ConfigError(
            "machine.launcher=slurm needs an allocation of Slurm's: put the command into a script for "
            "sbatch, or run it inside salloc."
        )
    if slurm:
        names, first = _slurm_hosts(environ)
        where = f"this allocation of Slurm's (job {environ['SLURM_JOB_ID']})"
        if first not in names:
            raise ConfigError(
                f"This machine, {first}, is not in {where}, which has {', '.join(names)}: run the command on "
                "one of them, by sbatch."
            )
        names.sort(key=lambda name: name != first)
    elif machine.hostfile:
        names = read_hostfile(Path(machine.hostfile), machine.processes)
        where = f"machine.hostfile={machine.hostfile}"
        if names and not is_this_machine(names[0]):
            raise ConfigError(
                f"{where} begins with {names[0]}, which is not this machine ({socket.gethostname()}): run "
                "the command on the first one."
            )
    else:
        raise ConfigError(
            f"machine.nodes is {machine.nodes}, and nothing says which machines: name them in a file, "
            "machine.hostfile=FILE, a line for each with this one first (`host slots=8`), or run inside an "
            "allocation of Slurm's."
        )
    if len(names) < machine.nodes:
        raise ConfigError(
            f"machine.nodes is {machine.nodes}, but {where} names {len(names)}: {', '.join(names) or 'none'}."
        )
    names = names[: machine.nodes]
    if _is_loopback(names[0]) and not all(map(_is_loopback, names)):
        raise ConfigError(
            f"{where} begins with {names[0]}, by which every machine means itself: write the name or address "
            "by which the others reach it."
        )
    return tuple(names), "slurm" if slurm else "ssh"


def read_hostfile(path: Path, processes: int | Literal["auto"]) -> list[str]:
    """The hosts of a file as DeepSpeed reads it. Raises ConfigError for a line that is none, or that has
    fewer slots than `processes`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"machine.hostfile={path} can't be read: {error}") from error
    names: list[str] = []
    for number, text in enumerate(lines, 1):
        if not (entry := text.partition("#")[0].strip()):
            continue
        # A name that began with a dash would be an option to ssh.
        found = re.fullmatch(r"((?:\w[\w.-]*@)?\w[\w.:-]*)(?:\s+slots\s*=\s*(\d+))?", entry)
        if not found or found[1] in names:
            what = "names a host twice" if found else "is not `host slots=8`"
            raise ConfigError(f"{path}:{number} {what}: {text.strip()!r}")
        if found[2] and isinstance(processes, int) and int(found[2]) < processes:
            raise ConfigError(
                f"{path}:{number} has {found[2]} slots, and machine.processes wants {processes} on each "
                "machine."
            )
        names.append(found[1])
    return names


def is_this_machine(name: str) -> bool:
    """Whether a host's name means this machine: only its own addresses can be bound."""
    try:
        family, _, _, _, address = socket.getaddrinfo(name.rpartition("@")[2], 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    """Whether a host's name means on each machine that machine."""
    return bool(re.match(r"(localhost\b|127\.|::1\Z)", name.rpartition("@")[2]))


def _slurm_hosts(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """The machines of this allocation, and what Slurm calls this one. Raises ConfigError."""
    listed = environ.get("SLURM_JOB_NODELIST", "")
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise ConfigError(
            f"scontrol does not say which machines {listed!r} are ({told}): name them with "
            "machine.hostfile=FILE."
        ) from error
    return done.stdout.split(), environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def remote_command(
    host: str, launcher: Literal["ssh", "slurm"], environ: Mapping[str, str], *, gpus: int = 0
) -> list[str]:
    """The command that starts `python -m tuner.launch.hosts` on another machine. Nothing secret is on it:
    anybody may read a command line.

    gpus    how many the processes there take
    """
    agent = [
        "env",
        f"PYTHONPATH={environ.get('PYTHONPATH', HOME)}",
        sys.executable,
        "-m",
        "tuner.launch.hosts",
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
    """Start a process of a training on this machine, the `local`-th of `count` here. The first of all
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


def main() -> int:
    """Start this machine's processes, and end when they have.

    Standard input has a line of JSON, and stays open. An error for people, and each one's exit code, are
    lines of JSON on standard output.
    """
    # Slurm sends these to all that a job has, before its time is over or when it is cancelled. The processes
    # of the training know what to do.
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
