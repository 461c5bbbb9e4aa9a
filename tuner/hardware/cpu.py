"""What the CPU offers, without torch."""

import os
import platform
from pathlib import Path


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16() -> bool:
    """Whether it multiplies bf16 by instructions of its own; False where that can't be told."""
    flags = {flag for name, value in _told() if name in ("flags", "features") for flag in value.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def model_name() -> str:
    """What its maker calls it; the kind of machine where that can't be told."""
    return next((value for name, value in _told() if name == "model name"), platform.machine())


def _told() -> list[tuple[str, str]]:
    """What Linux tells of the CPU: names in small letters, and values."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    return [(name.strip().lower(), value.strip()) for name, _, value in pairs]
