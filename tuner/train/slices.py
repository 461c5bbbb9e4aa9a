"""Which numbers of what trains lie in this process when DeepSpeed shards it, and where.

ZeRO flattens the tensors of a group into one and gives each process a slice of that (stages 1 and 2), or flattens each tensor and gives each process a
slice (stage 3). Either way a process holds at most one slice of a tensor, in fp32, inside a flat tensor that the optimizer knows as its parameter:

    tensor a (2, 3), b (4,)      a0 a1 a2 a3 a4 a5 b0 b1 b2 b3
    stages 1 and 2, 2 processes  [a0 a1 a2 a3 a4]  [a5 b0 b1 b2 b3]
    stage 3, 2 processes         [a0 a1 a2 b0 b1]  [a3 a4 a5 b2 b3]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner.train.engine import Saved


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Numbers of one flattened tensor."""

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
        """These numbers in a tensor that is laid out as `flat`: the weights, their gradient or a moment."""
        return flat.narrow(0, self.begin, self.count)


def slices(zero: Any, named: Mapping[str, torch.nn.Parameter]) -> dict[str, Slice]:
    """The slices of this process by parameter's name; a tensor of which it has nothing is not there. `zero` is DeepSpeed's ZeRO optimizer."""
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
            group, begin, count = here.param_group_index, here.hp_fragment_address.start, here.hp_fragment_address.numel
            offset = here.lp_fragment_address.start
            flat = zero.single_partition_of_fp32_groups[group]
        if count > 0:
            found[name] = Slice(offset=offset, count=count, begin=begin, flat=flat, group=group)
    return found


def weights(zero: Any, named: Mapping[str, torch.nn.Parameter], held: Mapping[str, Slice]) -> Iterator[tuple[str, Tensor]]:
    """The slices' weights by parameter's name: views, or copies of what lies on a disk."""
    for name, here in held.items():
        yield name, zero.get_local_fp32_param(named[name])[: here.count].cpu() if on_disk(zero, here) else here.of(here.flat.data)


def moments(zero: Any, named: Mapping[str, torch.nn.Parameter], held: Mapping[str, Slice]) -> Iterator[tuple[str, str, Tensor]]:
    """What the optimizer remembers of each slice: (parameter's name, moment, tensor). A count of steps has no dimension."""
    for name, here in held.items():
        for key, value in zero.optimizer.state.get(here.flat, {}).items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                yield name, key, torch.as_tensor(value)
            elif on_disk(zero, here):
                yield name, key, zero.get_local_fp32_param(named[name], key)[: here.count].cpu()
            else:
                yield name, key, here.of(value)


def restore(zero: Any, named: Mapping[str, torch.nn.Parameter], held: Mapping[str, Slice], keys: Mapping[str, str], saved: Saved) -> None:
    """Give the slices their part of a saved step's tensors; the weights of `name` are saved as `keys[name]`. All processes must call this.

    Where nothing of the optimizer was saved, it forgets what it had.
    """
    state = zero.optimizer.state
    state.clear()
    paths: dict[str, dict[str, str]] = {name: {} for name in named}
    for path in saved.optimizer:
        name, _, key = path.rpartition("/")
        paths[name][key] = path
    for name, here in held.items():
        _write(zero, named[name], here, saved.weights[keys[name]], None)
        for key, path in paths[name].items():
            value = saved.optimizer[path]
            if value.ndim == 0:
                state[here.flat][key] = value.to(here.flat.device, copy=True)
                continue
            if key not in state[here.flat]:
                state[here.flat][key] = torch.zeros_like(here.flat, requires_grad=False)
            _write(zero, named[name], here, value, key)
    _spread(zero)


def _write(zero: Any, p: torch.nn.Parameter, here: Slice, whole: Tensor, key: str | None) -> None:
    values = whole.reshape(-1)[here.offset : here.offset + here.count]
    if on_disk(zero, here):
        padded = torch.zeros(p.ds_tensor.ds_numel, dtype=torch.float32)  # type: ignore[attr-defined]
        padded[: here.count] = values
        zero.set_local_hp_param(padded, p, key)
    else:
        here.of(here.flat.data if key is None else zero.optimizer.state[here.flat][key]).copy_(values)


def _spread(zero: Any) -> None:
    """Let the weights of the forward pass be those of the slices, in all processes."""
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for group in range(len(zero.fp32_partitioned_groups_flat)):
        swapped = zero._swappable_optimizer_subgroup(group)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(group)
        zero._reassign_or_swap_out_partitioned_parameters(group)
        if swapped:
            zero._optimizer_states_and_gradient_swap_out(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def discard_gradients(zero: Any) -> None:
    """As if nothing had been computed since the last step."""
    zero.zero_grad()
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.averaged_gradients = {}
        zero.reset_cpu_buffers()
        zero._offload_boundary_param_ids = set()
        zero.grad_partitions_flat_buffer.zero_()
        return
    for group in range(len(zero.bit16_groups)):
        zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
    zero._release_ipg_buffers()
    zero.micro_step_id = -1
    if zero.cpu_offload:
        zero.reset_cpu_buffers()
        zero._offload_accumulated_param_ids = set()


def on_disk(zero: Any, here: Slice) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat") and bool(zero._swappable_optimizer_subgroup(here.group))
