"""What `auto` and the neutral fields mean on this machine: facts of the run, which one that goes on
keeps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tuner.config import deepspeed
from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.estimate.memory import CONTEXT
from tuner.estimate.what_fits import GIB
from tuner.files import read_json, write_json
from tuner.hardware.cpu import cores
from tuner.hardware.libraries import installed_version
from tuner.kernels.attention import BACKENDS
from tuner.models.load import resolve_device
from tuner.train.checkpoints import steps


def device_of(machine: View, began: Mapping[str, Any]) -> torch.device:
    """Where this training computes: where it began, unless the config says otherwise now."""
    device = resolve_device(machine.device)
    return torch.device("cpu") if machine.device == "auto" and began.get("device") == "cpu" else device


def limit_memory(most: float | str, device: torch.device) -> None:
    """Let PyTorch hold no more than machine.memory=`most` leaves it on a GPU, where that is a number."""
    if device.type == "cuda" and not isinstance(most, str):
        _, total = torch.cuda.mem_get_info(device)
        share = max(0.0, most * GIB - CONTEXT) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))  # of the current one


def resolve_facts(
    config: View, device: torch.device, began: Mapping[str, Any], *, processes: int, here: int
) -> dict[str, Any]:
    """What is known before there is a model; `here` is the number of processes on this machine, who share its
    cores.

    A field at `auto` keeps what it meant when the run began. Raises ConfigError for what can't be
    together.
    """
    machine = config.machine
    combination = deepspeed.combination_of(machine, config.algo, processes=processes)
    if why := deepspeed.why_refused(combination):
        raise ConfigError(why)
    facts = {
        "device": device.type,
        "torch": torch.__version__,
        "engine": combination.engine,
        "zero": combination.zero,
        "offload": combination.offload,
        "processes": processes,
        "sequence_parallel": machine.sequence_parallel,
        "deterministic": machine.deterministic,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    facts["threads"] = (
        began.get("threads", max(1, cores() // here)) if machine.threads == "auto" else machine.threads
    )
    return facts


def attention_facts(name: str) -> dict[str, str]:
    """The backend of attention and the version of its package, where that is known: FlashAttention 3 is built
    from its source.
    """
    found = installed_version(package) if (package := BACKENDS[name].package) else None
    return {"attention": name} | ({"attention_version": found} if found else {})


def read_facts(out: Path) -> dict[str, Any]:
    """The facts of the run that `out` holds, if it holds one."""
    return read_json(out / steps.FACTS) or {}


def write_facts(
    out: Path, facts: Mapping[str, Any], before: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Write them down, and say what is not as it was."""
    for sentence in steps.changed_facts(before, facts):
        say(sentence)
    write_json(out / steps.FACTS, dict(facts))
