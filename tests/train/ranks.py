"""A function in several processes that know each other, as the ranks of a training on the processor."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from tests.conftest import REPO, environment


def in_processes(
    function: str,
    given: Mapping[str, Any],
    directory: Path,
    *,
    size: int,
    bitsandbytes: bool = False,
    timeout: float = 240,
) -> list[Any]:
    """What `module:function` returns, by rank, when it is called with the World and `given` in each of `size`
    processes.

    `bitsandbytes`: whether they may import it. When one fails, the others are ended and its traceback is this
    error's text.
    """
    directory.mkdir(parents=True)
    torch.save(dict(given), directory / "given.pt")
    children = []
    for rank in range(size):
        with (directory / f"{rank}.log").open("w", encoding="utf-8") as log:
            words = [
                sys.executable,
                "-m",
                "tests.train.ranks",
                function,
                str(directory),
                str(rank),
                str(size),
                str(int(bitsandbytes)),
            ]
            children.append(
                subprocess.Popen(
                    words,
                    env=environment({"OMP_NUM_THREADS": "1"}),
                    cwd=REPO,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    began, failed = time.monotonic(), list[int]()
    try:
        while (
            any(child.poll() is None for child in children)
            and not failed
            and time.monotonic() - began < timeout
        ):
            time.sleep(0.05)
            failed = [rank for rank, child in enumerate(children) if child.poll()]
    finally:
        late = [rank for rank, child in enumerate(children) if child.poll() is None]
        for child in children:
            child.kill()
            child.wait()
    texts = [(directory / f"{rank}.log").read_text(encoding="utf-8") for rank in range(size)]
    assert not failed, (
        f"process {failed[0]} of {size} ended with "
        f"{children[failed[0]].returncode}:\n{texts[failed[0]][-6000:]}"
    )
    assert not late, f"processes {late} of {size} had not ended after {timeout} s"
    assert texts == [""] * size, f"a process spoke:\n{''.join(texts)}"
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(size)]


def main(function: str, directory: Path, rank: int, size: int, bitsandbytes: bool) -> None:
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    from tuner.hardware.optional_imports import block_optional_imports

    block_optional_imports(bitsandbytes=bitsandbytes, deepspeed=True)
    from tuner.train.distributed import World

    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group(
            "gloo",
            store=FileStore(str(directory / "store"), size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=120),
        )
    module, _, name = function.partition(":")
    given = torch.load(directory / "given.pt", weights_only=False)
    made = getattr(importlib.import_module(module), name)(
        World(rank=rank, size=size, device=torch.device("cpu")), given
    )
    torch.save(made, directory / f"{rank}.pt")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may still be there when the interpreter ends, and abort it


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), bool(int(sys.argv[5])))
