"""The machines of a run that trains on several: from a hostfile or from Slurm's allocation.

Launching on several machines is frozen, here and in `tuner.launch.remote`: faults are mended, and no feature
is added.
"""

import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tuner.config.schema import Machine
from tuner.errors import ConfigError


def find_hosts(
    machine: Machine, environ: Mapping[str, str]
) -> tuple[tuple[str, ...], Literal["ssh", "slurm"]]:
    """The machines of the run, this one first, and what starts processes on the others. Raises
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
