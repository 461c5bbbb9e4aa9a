"""What is offloaded to a disk (machine.offload_path): where its files lie, and that nothing of it is lost.

Each process has a directory of its own there, so that runs may share a disk; it goes when the process
ends, and what a killed one left goes when the next one comes. DeepSpeed's async_io, which reads and writes
the files, asks the kernel for each block but never looks at the answer: where a disk is full it would go on
with zeros. `Handle` reserves the space before anything is written, and an error is an error.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.errors import ConfigError, StageError

PREFIX, LOCK = "tuner-", "lock"
"""of a process's directory, and the file in it that the process holds as long as it lives"""


def require_disk() -> Any:
    """DeepSpeed's async_io, the only part of it that is compiled here. Raises ConfigError where that
    fails.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        return AsyncIOBuilder().load(verbose=False)
    except Exception as error:  # of the compiler, of the linker, or DeepSpeed's own
        raise ConfigError(
            "machine.offload_path needs DeepSpeed's async_io, which is compiled on first use with g++ and "
            f"ninja against libaio, and that failed here: {' '.join(str(error).split())[:300]}. Install "
            "them (apt install g++ libaio-dev; pip install ninja), or set machine.offload_path=null, which "
            "offloads to the host's memory and compiles nothing."
        ) from error


def prepare(settings: Mapping[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """DeepSpeed's JSON for this process: with a directory of its own, which goes when the model does, or the
    process.

    Raises ConfigError where the directory can't be used or async_io can't be had.
    """
    op = require_disk()
    if not hasattr(op.aio_handle, "reserves"):
        op.aio_handle = _handle(op.aio_handle)
    zero = dict(settings["zero_optimization"])
    place, lock = own_directory(Path(zero["offload_optimizer"]["nvme_path"]).absolute())
    weakref.finalize(model, _leave, place, lock)
    for part in {"offload_optimizer", "offload_param"} & zero.keys():
        zero[part] = zero[part] | {"nvme_path": str(place)}
    return {**settings, "zero_optimization": zero}


def shard_model(model: torch.nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """Shard a model over the processes, with its weights on the disk, a tensor at a time; DeepSpeed's JSON
    for what follows.

    DeepSpeed stores all weights on a disk in one dtype, whatever theirs is, and in bf16 where the device is
    the CPU. So only weights of the dtype that most have go there, in that dtype. Others, such as fp32
    adapters of a bf16 base, stay in the host's memory.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper

    parameters = list(model.parameters())
    sizes = Counter[torch.dtype]()
    for p in parameters:
        sizes[p.dtype] += p.nbytes
    dtype = max(sizes, key=sizes.__getitem__)
    zero = settings["zero_optimization"]
    memory = {"device": "cpu", "pin_memory": zero["offload_param"]["pin_memory"]}
    others = [p for p in parameters if p.dtype != dtype]

    class Swapper(AsyncPartitionedParameterSwapper):  # type: ignore[misc]
        def synchronize_reads(self) -> None:
            arrived = list(self.inflight_params)
            super().synchronize_reads()
            if device == "cpu":
                # One process would compute in the buffer itself, which the next weight takes while autograd,
                # where it recomputes, still reads this one.
                for p in arrived:
                    p.ds_tensor.data = p.ds_tensor.data.clone()

    device = get_accelerator().device_name()
    swapper = Swapper(DeepSpeedConfig(settings), dtype)
    deepspeed.zero.Init(
        module=torch.nn.ParameterList([p for p in parameters if p.dtype == dtype]),
        config_dict_or_path=settings,
        param_swapper=swapper,
        dtype=dtype,
    )
    in_memory = {**settings, "zero_optimization": zero | {"offload_param": memory}}
    deepspeed.zero.Init(module=torch.nn.ParameterList(others), config_dict_or_path=in_memory)
    room = sum(p.ds_numel for p in others if p.requires_grad)  # type: ignore[attr-defined]
    return {
        **settings,
        "zero_optimization": zero | {"offload_param": zero["offload_param"] | {"max_in_cpu": room}},
    }


def own_directory(path: Path) -> tuple[Path, int]:
    """A new directory under `path`, and the descriptor of its lock. Raises ConfigError where files can't
    be written there past the page cache.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path))
        lock = os.open(made / "new", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        (made / "new").rename(made / LOCK)  # a file of this name is held, or its process is no more
        os.close(os.open(made / "direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError as error:
        raise ConfigError(
            f"machine.offload_path={path} can't be used: {error}. It must be a directory on a local disk "
            "(NVMe), where files can be made and opened with O_DIRECT. Name another one, or set "
            "machine.offload_path=null, which offloads to the host's memory."
        ) from error
    return made, lock


def remove_stale(path: Path) -> None:
    """Remove the directories of processes that are no more."""
    for left in path.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, one that is used, or one that another process removes
            lock = os.open(left / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def _leave(place: Path, lock: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    os.close(lock)


def _handle(base: Any) -> Any:
    """async_io's handle, with errors."""

    class Handle(base):  # type: ignore[misc]
        reserves = True

        def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
            reserve_space(path, offset + buffer.nbytes)
            done: int = super().async_pwrite(buffer, path, offset)
            return done

        def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
            if super().async_pread(buffer, path, offset):
                raise StageError(
                    f"{path}, which was offloaded (machine.offload_path), is gone or can't be read. The same "
                    "command continues."
                )
            return 0

    return Handle


def reserve_space(path: str, size: int) -> None:
    """Let a file have this many bytes on the disk. Raises StageError where it can't."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(file).st_size < size:
                os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)
    except OSError as error:
        raise StageError(
            f"What is offloaded can't be written to machine.offload_path: {path}, {size:,} bytes: {error}. "
            "Optimizer and gradients take 16 bytes there for each trainable parameter. Make space or name "
            "another directory; the same command continues."
        ) from error
