"""Which values of the trainable parameters lie in this process when DeepSpeed shards it, and where.

ZeRO flattens the tensors of a group into one and gives each process a slice of that (stages 1 and 2), or
flattens each tensor and gives each process a slice (stage 3). Either way a process holds at most one slice of
a tensor, in fp32, inside a flat tensor that the optimizer knows as its parameter:

    tensor a (2, 3), b (4,)      a0 a1 a2 a3 a4 a5 b0 b1 b2 b3
    stages 1 and 2, 2 processes  [a0 a1 a2 a3 a4]  [a5 b0 b1 b2 b3]
    stage 3, 2 processes         [a0 a1 a2 b0 b1]  [a3 a4 a5 b2 b3]
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner.train.engine import SavedTensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Some values of one flattened tensor."""

    offset: int
    """where they begin in the tensor"""
    count: int
    begin: int
    """where they begin in `flat`"""
    flat: Tensor
    """fp32, 1-D: what the optimizer steps on"""
    group: int
    """the number of `flat` among DeepSpeed's"""

    def of(self, flat: Tensor) -> Tensor:
        """These values in a tensor that is laid out as `flat`: the weights, their gradient or a moment."""
        return flat.narrow(0, self.begin, self.count)


def slices(zero: Any, named: Mapping[str, torch.nn.Parameter]) -> dict[str, Slice]:
    """The slices of this process by parameter's name; a tensor of which it has nothing is not there.
    `zero` is DeepSpeed's ZeRO optimizer.
    """
    found = {}
    for name, p in named.items():
        if hasattr(p, "ds_id"):
            group, begin, count = zero.grad_position[zero.get_param_id(p)]
            offset = count * zero._get_param_partition_rank(p)
            count = min(count, p.ds_numel - offset)  # type: ignore[attr-defined]  # the last slice is padded, and some may be nothing else
            flat = zero.fp32_partitioned_groups_flat[group]
        else:
            here = p._hp_mapping  # type: ignore[attr-defined]
            if here is None:
                continue
            group, begin, count = (
                here.param_group_index,
                here.hp_fragment_address.start,
                here.hp_fragment_address.numel,
            )
            offset = here.lp_fragment_address.start
            flat = zero.single_partition_of_fp32_groups[group]
        if count > 0:
            found[name] = Slice(offset=offset, count=count, begin=begin, flat=flat, group=group)
    return found


def weights(zero: Any, held: Mapping[str, Slice]) -> Iterator[tuple[str, Tensor]]:
    """The slices' weights by parameter's name: views, of the memory or of the disk."""
    for name, here in held.items():
        yield name, here.of(_stored(zero, here, here.flat) if on_disk(zero, here.group) else here.flat.data)


def moments(zero: Any, held: Mapping[str, Slice]) -> Iterator[tuple[str, str, Tensor]]:
    """What the optimizer remembers of each slice: (parameter's name, moment, tensor). A count of steps has
    no dimension.
    """
    for name, here in held.items():
        for key, value in zero.optimizer.state.get(here.flat, {}).items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                yield name, key, torch.as_tensor(value)
            else:
                yield name, key, here.of(_stored(zero, here, value) if on_disk(zero, here.group) else value)


def gradient(zero: Any, p: torch.nn.Parameter) -> Tensor:
    """The whole gradient of what DeepSpeed writes to a disk, fp32, from its copy in memory: it would read
    all of a group for each tensor.
    """
    whole: Tensor = zero._fp32_state_allgather(
        p,
        zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition[p.ds_id],  # type: ignore[attr-defined]
    )
    return whole


def restore(
    zero: Any,
    named: Mapping[str, torch.nn.Parameter],
    held: Mapping[str, Slice],
    keys: Mapping[str, str],
    saved: SavedTensors,
) -> None:
    """Give the slices their part of a saved step's tensors; the weights of `name` are saved as `keys[name]`.
    All processes must call this.

    Where nothing of the optimizer was saved, it forgets what it had.
    """
    state = zero.optimizer.state
    state.clear()
    if swaps(zero):
        zero.optimizer_swapper.purge_state()
    paths: dict[str, dict[str, str]] = {name: {} for name in named}
    for path in saved.optimizer:
        name, _, key = path.rpartition("/")
        paths[name][key] = path
    groups: dict[int, list[str]] = {}
    for name, here in held.items():
        groups.setdefault(here.group, []).append(name)
    if sharded := shards_weights(zero):
        zero._partition_all_parameters()
    for group in range(len(zero.fp32_partitioned_groups_flat)) if sharded else groups:
        with in_memory(zero, group):
            for name in groups.get(group, ()):
                here = held[name]
                here.of(here.flat.data).copy_(_part(saved.weights[keys[name]], here))
                for key, path in paths[name].items():
                    value = saved.optimizer[path]
                    if value.ndim == 0:
                        state[here.flat][key] = value.to(here.flat.device, copy=True)
                        continue
                    if key not in state[here.flat]:
                        state[here.flat][key] = torch.zeros_like(here.flat, requires_grad=False)
                    here.of(state[here.flat][key]).copy_(_part(value, here))
            if sharded:
                zero._reassign_or_swap_out_partitioned_parameters(group)
    # Now the weights of the forward pass, in all processes.
    if not sharded:
        zero.update_lp_params()
    elif zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _part(whole: Tensor, here: Slice) -> Tensor:
    return whole.reshape(-1)[here.offset : here.offset + here.count]


def _stored(zero: Any, here: Slice, flat: Tensor) -> Tensor:
    """The file of a flat tensor, weights or a moment, which is not in memory: read where and when it is
    looked at.
    """
    info = zero.optimizer_swapper.swap_params_info[here.flat.ds_id]  # type: ignore[attr-defined]
    path = next(part.swap_path for part in info.tensors if part.compute_tensor is flat)
    return torch.from_file(path, shared=False, size=info.numel(), dtype=torch.float32)


@contextmanager
def in_memory(zero: Any, group: int) -> Iterator[None]:
    """Around changes of a flat tensor and its moments. What is on a disk is read, and written again."""
    swapped = on_disk(zero, group)
    if swapped:
        zero._optimizer_states_and_gradient_swap_in(group)
    yield
    if swapped:
        zero._optimizer_states_and_gradient_swap_out(group)


def forget(zero: Any, held: Mapping[str, Slice]) -> None:
    """Drop the moments that are on a disk, as if no step had been done."""
    if swaps(zero):
        for here in held.values():
            if on_disk(zero, here.group):
                zero.optimizer.state.pop(here.flat, None)
        zero.optimizer_swapper.purge_state()


def discard_gradients(zero: Any) -> None:
    """As if nothing had been computed since the last step."""
    zero.zero_grad()
    if shards_weights(zero):
        zero.averaged_gradients = {}
        zero.reset_cpu_buffers()
        zero._offload_boundary_param_ids = set()
        if swaps(zero):
            zero.optimizer_swapper.flush_gradients()
    else:
        for group in range(len(zero.bit16_groups)):
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
        zero._release_ipg_buffers()
        zero.micro_step_id = -1
        if zero.cpu_offload:
            zero.reset_cpu_buffers()
            zero._offload_accumulated_param_ids = set()
    clear_gradients(zero)


def clear_gradients(zero: Any) -> None:
    """After a step: a tensor that has no gradient in the next one would step on this one's again, or add
    to it. An expert without tokens is such.
    """
    if shards_weights(zero):
        zero.grad_partitions_flat_buffer.zero_()
    elif zero.cpu_offload:
        for whole in zero.accumulated_grads_in_cpu.values():
            whole.zero_()
        for flat in zero.single_partition_of_fp32_groups:
            flat.grad.zero_()


def shards_weights(zero: Any) -> bool:
    """Whether this is DeepSpeed's optimizer of stage 3; stages 1 and 2 have another one."""
    return hasattr(zero, "fp32_partitioned_groups_flat")


def swaps(zero: Any) -> bool:
    """Whether it keeps its state on a disk."""
    return shards_weights(zero) and bool(zero.swap_optimizer)


def on_disk(zero: Any, group: int) -> bool:
    """Whether a flat tensor and its moments are on a disk between steps: those of less than 1 MiB stay in
    memory.
    """
    return swaps(zero) and bool(zero._swappable_optimizer_subgroup(group))
