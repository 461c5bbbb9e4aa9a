"""DeepSpeed's JSON: the whole of it from the config's fields, with a file of the user's over what these
leave open.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.config.deepspeed import Combination
from tuner.errors import ConfigError
from tuner.files import decode_json

OURS = {
    "train_batch_size": "algo.batch_tokens and machine.micro_batch",
    "train_micro_batch_size_per_gpu": "machine.micro_batch",
    "gradient_accumulation_steps": "algo.batch_tokens and machine.micro_batch",
    "managed_gradient_accumulation": "algo.batch_tokens and machine.micro_batch",
    "optimizer": "algo.optim",
    "scheduler": "algo.schedule and algo.warmup",
    "gradient_clipping": "algo.clip",
    "fp16": "algo.precision",
    "bf16": "algo.precision",
    "torch_autocast": "algo.precision",
    "data_types": "algo.precision",
    "zero_optimization.stage": "machine.zero",
    "zero_optimization.offload_optimizer.device": "machine.offload and machine.offload_path",
    "zero_optimization.offload_optimizer.nvme_path": "machine.offload_path",
    "zero_optimization.offload_param.device": "machine.offload and machine.offload_path",
    "zero_optimization.offload_param.nvme_path": "machine.offload_path",
    "zero_optimization.round_robin_gradients": "nothing: a saved step could not say which values it holds",
    "zero_optimization.parameter_alignment": "nothing: a saved step could not say which values it holds",
    "prescale_gradients": "nothing: gradients are sums here, scaled before the backward pass",
    "gradient_predivide_factor": "nothing: gradients are sums here, scaled before the backward pass",
    "gradient_allreduce_op": "nothing: gradients are sums here, scaled before the backward pass",
}
"""keys of the JSON that a file of the user's may not change, and the fields that say so instead"""

BUCKET = 2**25
"""values that are reduced together, at least: 128 MiB in fp32, with which a network's bandwidth and not
its latency decides
"""


def deepspeed_json(
    combination: Combination,
    *,
    device: str,
    trainable: int,
    hidden: int,
    largest: int,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole of DeepSpeed's JSON; nothing in it is "auto".

    device     "cpu" or "cuda"
    trainable  the number of trainable parameters
    hidden     the model's hidden size
    largest    the number of elements of the model's largest tensor
    own        what the user's own file says (`read_own`), merged over the rest

    Raises ConfigError where `own` has keys that follow from tuner's fields.
    """
    cuda = device == "cuda"
    layer = 12 * hidden**2  # about what a block of a decoder holds: 4 in attention, 8 in the gated MLP
    bucket = _even(min(trainable, max(BUCKET, hidden**2)))
    zero: dict[str, Any] = {
        "stage": combination.zero,
        "contiguous_gradients": True,  # in one buffer as they appear, which does not fragment the memory
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        # Reduction beside the backward pass costs a second bucket. ZeRO 1 reduces when the step's last
        # backward pass is over, gloo has no streams.
        "overlap_comm": cuda and combination.zero >= 2,
        "round_robin_gradients": False,
        "ignore_unused_parameters": True,
    }
    if combination.zero == 3:
        zero |= {
            # A step takes so many values at a time: from a disk through four buffers of that size.
            "sub_group_size": 10**8 if combination.offload_path else 10**9,
            "stage3_prefetch_bucket_size": layer,  # the next block, while this one computes
            # norms and biases are whole everywhere: fetching them would be all latency
            "stage3_param_persistence_threshold": 10 * hidden,
            "stage3_max_live_parameters": max(10**9, 3 * layer),
            "stage3_max_reuse_distance": max(10**9, 3 * layer),
            "stage3_gather_16bit_weights_on_model_save": False,  # a step is saved in shards
            "memory_efficient_linear": False,  # it replaces torch.nn.functional.linear, for everybody
        }
    if combination.offload != "none":
        disk = {"nvme_path": combination.offload_path} if combination.offload_path else {}
        there = {"device": "nvme" if combination.offload_path else "cpu", "pin_memory": cuda} | disk
        zero["offload_optimizer"] = there | (
            {"buffer_count": 4, "fast_init": False, "pipeline_read": False, "pipeline_write": False}
            if disk
            else {}
        )
        if combination.offload == "all":
            zero["offload_param"] = there
            if disk:
                # A buffer takes this process's part of the largest tensor, and a tensor has one as long as it
                # is whole. DeepSpeed ends where none is
                # free: so no tensor is read ahead, or kept for its next use.
                part = _even(-(-largest // combination.processes))
                zero["offload_param"] = there | {"buffer_count": 5, "buffer_size": part, "max_in_cpu": 0}
                zero |= {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
    found: dict[str, Any] = {
        # formal, like the next: what a step accumulates is told to the engine batch by batch
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        # weights are fp32 where they train, and autocast is in the forward pass, as without DeepSpeed
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "prescale_gradients": False,
        "zero_allow_untested_optimizer": True,
        # PyTorch's fused AdamW is as fast on the CPU, and needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        # they wait for the GPU in each step
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "zero_optimization": zero,
    }
    if combination.offload_path:
        found["aio"] = {
            "block_size": 2**20,
            "queue_depth": 8,
            "thread_count": 1,
            "single_submit": False,
            "overlap_events": True,
        }
    return merge(found, own) if own else found


def read_own(path: str) -> dict[str, Any]:
    """A DeepSpeed JSON of the user's (machine.deepspeed). Raises ConfigError where it is none."""
    try:
        own = decode_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"machine.deepspeed={path} can't be read as JSON: {error}. Name a file of DeepSpeed settings, or "
            "leave the field out."
        ) from error
    if not isinstance(own, dict):
        raise ConfigError(
            f"machine.deepspeed={path} holds a JSON {type(own).__name__}, but DeepSpeed's settings are an "
            "object: {…}."
        )
    return own


def merge(found: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`found` with the values of `own` over it. "auto" in `own`, as files for other tools have it, leaves
    what is there.

    Raises ConfigError where `own` says something else than a field of tuner's.
    """
    refused: list[str] = []
    merged = _over(found, own, "", refused)
    if refused:
        fields_ = "; ".join(f"{key} follows from {OURS[key]}" for key in refused)
        raise ConfigError(
            f"machine.deepspeed has {', '.join(refused)}, which that file may not set: {fields_}. Take "
            "it out of the file."
        )
    return merged


def _over(found: Mapping[str, Any], own: Mapping[str, Any], path: str, refused: list[str]) -> dict[str, Any]:
    merged = dict(found)
    for key, value in own.items():
        where = f"{path}{key}"
        before = merged.get(key)
        if value == "auto" or value == before:
            continue
        if (
            isinstance(value, Mapping)
            and where in OURS
            and all(v in ("auto", (before or {}).get(k)) for k, v in value.items())
        ):
            continue
        if where in OURS:
            refused.append(where)
        elif isinstance(value, Mapping):
            merged[key] = _over(before if isinstance(before, Mapping) else {}, value, f"{where}.", refused)
        else:
            merged[key] = value
    return merged


def _even(count: int) -> int:
    """NCCL wants buffers aligned to two values."""
    return max(2, count + count % 2)
