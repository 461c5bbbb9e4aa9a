"""What a preflight found, remembered for each machine and config in the user's cache, so that it is paid
for once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from tuner.files import file_identity, read_json, user_cache, write_json
from tuner.hardware.libraries import installed_version

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "flash-attn-4",
    "triton",
)
"""whose versions decide speed, memory and rounding"""
FORMAT = 3
"""of the file; raised when what is checked changes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the memory probe settled and measured, and what the proofs measured."""

    micro_batch: int
    recompute: str | int
    reserved: int | None = None
    """bytes of GPU memory at the peak; None on the CPU"""
    expected: int | None = None
    """what was estimated"""
    tokens_per_second: float | None = None
    """of all processes together"""
    proofs: Mapping[str, float] = field(default_factory=dict)
    """differences by name"""


def verdict_key(parts: Mapping[str, Any], files: Iterable[Path], device: torch.device) -> str:
    """The digest under which a verdict is remembered.

    parts   the config's fields that decide it, and the number of processes: what JSON can hold
    files   what is read: the model's files and the packs, known by path, size and times

    What the machine is enters by itself: the card, its memory, and the versions of libraries.
    """
    machine: dict[str, Any] = {
        "device": device.type,
        "libraries": {name: installed_version(name) for name in LIBRARIES},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        machine |= {"card": card.name, "memory": card.total_memory, "cuda": torch.version.cuda}
    read = {str(path.resolve()): file_identity(path) for path in files}
    text = json.dumps(
        {"format": FORMAT, "parts": parts, "machine": machine, "files": read}, sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def recall(key: str) -> Verdict | None:
    """What was found under this key; None where nothing was, or the file can't be read."""
    found = read_json(_path(key))
    names = {f.name for f in fields(Verdict)}
    if found is None or found.keys() != names:
        return None
    return Verdict(**found)


def remember(key: str, verdict: Verdict) -> None:
    """Keep it for the next time. A cache that can't be written is no reason to fail."""
    try:
        write_json(_path(key), asdict(verdict) | {"proofs": dict(verdict.proofs)}, indent=1)
    except OSError:
        return


def _path(key: str) -> Path:
    return user_cache("preflight") / f"{key[:32]}.json"
