"""Loads checkpoints one after the other and tells on standard output before and after each, so that its
parent can watch its memory.

Usage: python -m tests.models.memory DEVICE, with jobs as JSON lines on standard input: directory, adapter or
null, dtype, rounded or null.
"""

import json
import sys
from pathlib import Path

import torch

from tuner.models.load import load_model, load_tuned


def held() -> int:
    """Bytes of this process that no file backs: what is mapped from a checkpoint is not memory that
    somebody must have.
    """
    return (
        int(
            next(
                line
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("RssAnon")
            ).split()[1]
        )
        * 1024
    )


def main(device: str) -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        dtype, rounded = (
            getattr(torch, job["dtype"]),
            getattr(torch, job["rounded"]) if job["rounded"] else None,
        )
        print(held(), flush=True)
        sys.stdin.readline()
        if job["adapter"]:
            model = load_tuned(
                Path(job["directory"]), Path(job["adapter"]), dtype=dtype, device=device, rounded=rounded
            )
        else:
            model = load_model(Path(job["directory"]), dtype=dtype, device=device, rounded=rounded)
        print(
            sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()), flush=True
        )
        del model


if __name__ == "__main__":
    main(sys.argv[1])
