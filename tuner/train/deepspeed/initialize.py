"""DeepSpeed's engine, started around a model: its settings, its groups of processes, and where the weights
go.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed
from torch._C._distributed_c10d import HashStore

from tuner.errors import ConfigError
from tuner.hardware.libraries import how_to_install
from tuner.train.deepspeed import nvme
from tuner.train.distributed import World


def start_deepspeed(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    world: World,
    timeout: float,
) -> Any:
    """DeepSpeed's engine around model and optimizer. Raises ConfigError where it is not installed or
    refuses the settings.
    """
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "This run needs DeepSpeed (machine.engine=deepspeed, several processes, machine.zero or "
            f"machine.offload), which is not installed here: {how_to_install('deepspeed')}"
        )
    device = world.device
    os.environ["DS_ACCELERATOR"] = device.type  # it would take a GPU where there is one
    # The device that it moves the model to.
    os.environ["LOCAL_RANK"] = str(
        torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index or 0
    )
    with quiet():
        import deepspeed
        from deepspeed.utils import groups
        from pydantic import ValidationError

        if device.type == "cpu":
            # A shared-memory all-reduce, for inference alone, that DeepSpeed would compile for half a minute.
            vars(deepspeed.ops)["__compatible_ops__"] = {}
        else:
            # It asks NVML, by numbers in CUDA_VISIBLE_DEVICES; there are UUIDs (see tuner/hardware/gpus.py).
            deepspeed.get_accelerator().available_memory = lambda index=None: torch.cuda.mem_get_info(index)[
                0
            ]
        if "aio" in settings:
            settings = nvme.prepare(settings, model)
        if not torch.distributed.is_initialized():
            if world.size > 1:
                raise RuntimeError("torch.distributed is not started, and there are other processes")
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        if groups._WORLD_GROUP is None:  # its own would wait half an hour for a process that is gone
            groups._WORLD_GROUP = torch.distributed.new_group(timeout=timedelta(seconds=timeout))
        try:
            zero = settings["zero_optimization"]
            on_disk = zero.get("offload_param", {}).get("device") == "nvme"
            if on_disk or (zero["stage"] == 3 and next(model.parameters()).device.type != device.type):
                # One tensor at a time, so that the whole model never has to fit.
                deepspeed.init_distributed(dist_init_required=False)
                if on_disk:
                    settings = nvme.shard_model(model, dict(settings))
                else:
                    deepspeed.zero.Init(module=model, config_dict_or_path=dict(settings))
                for buffer in model.buffers():
                    buffer.data = buffer.data.to(device)
            engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=dict(settings), dist_init_required=False
            )
        except (ValidationError, deepspeed.runtime.config.DeepSpeedConfigError) as error:
            raise ConfigError(
                f"DeepSpeed refuses its settings: {' '.join(str(error).split())}. Fix the file that "
                "machine.deepspeed names."
            ) from error
    return engine


@contextmanager
def quiet() -> Iterator[None]:
    """Let DeepSpeed say nothing but errors, and that on stderr: stdout is the program's own."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed  # noqa: F401

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # which the import has set
        yield
    # It calls functions that a newer PyTorch has under other names, in each step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
