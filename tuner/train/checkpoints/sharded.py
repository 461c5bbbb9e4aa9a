"""What one or several processes have saved of a step, read as whole tensors, one at a time.

A process that holds a part of a tensor saves it flat, under `name@offset`: the values from `offset` on, in
the tensor's own order. A tensor of shape (2, 3) in two processes:

    weights-00001-of-00002.safetensors    layer.weight@0   4 values
    weights-00002-of-00002.safetensors    layer.weight@4   2 values

A tensor that one process holds whole lies there under its plain name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.safetensors import DTYPES, Spec, read_specs
from tuner.train.checkpoints.steps import OPTIMIZER, WEIGHTS, SavedStep

MEND = (
    "The save was not whole: remove the step's directory, and the same command goes on from the step "
    "before it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardedStep:
    """A saved step, as an engine reads it."""

    weights: "LazyTensors"
    optimizer: "LazyTensors"
    """empty where no run can go on from the step"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """Some of a tensor's values."""

    begin: int
    end: int
    file: Path
    spec: Spec
    """as it lies in the file"""

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.spec.name)
        return tensor


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of some files by name, each read when it is asked for and not kept."""

    specs: dict[str, Spec]
    """all tensors as they are when whole, from the files' headers alone"""

    def __init__(self, files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are those of the tensors that lie in fragments. Raises DataError unless each number of
        each tensor is there just once.
        """
        self._found: dict[str, list[Fragment]] = {name: [] for name in shapes}
        for path in files:
            for spec in read_specs(path).values():
                name, begin = _place(spec, shapes)
                self._found.setdefault(name, []).append(
                    Fragment(begin=begin, end=begin + spec.count, file=path, spec=spec)
                )
        for found in self._found.values():
            found.sort(key=lambda fragment: (fragment.begin, fragment.end))
        self.specs = {name: _spec(name, found, shapes.get(name)) for name, found in self._found.items()}

    def __getitem__(self, name: str) -> Tensor:
        found, spec = self._found[name], self.specs[name]
        if len(found) == 1:
            return found[0].read().reshape(spec.shape)
        values_N = torch.empty(spec.count, dtype=DTYPES[spec.dtype])
        for fragment in found:
            values_N[fragment.begin : fragment.end] = fragment.read()
        return values_N.reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def open_step(checkpoint: SavedStep) -> ShardedStep:
    """The tensors of a saved step, on the CPU. Only the files' headers are read here, and their hashes are
    not looked at.
    """
    return ShardedStep(
        **{
            kind: LazyTensors(checkpoint.paths(kind), checkpoint.shapes.get(kind, {}))
            for kind in (WEIGHTS, OPTIMIZER)
        }
    )


def _place(spec: Spec, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """Which tensor an entry of a file belongs to, and where it begins there."""
    name, _, offset = spec.name.rpartition("@")
    return (name, int(offset)) if name in shapes and offset.isdecimal() else (spec.name, 0)


def _spec(name: str, found: Sequence[Fragment], shape: tuple[int, ...] | None) -> Spec:
    """The whole tensor, of fragments in their order. Raises DataError where they don't make one."""
    if not found:
        raise DataError(f"Of {name} nothing is in the files of its step. {MEND}")
    first = found[0]
    if shape is None:
        if len(found) > 1:
            raise DataError(
                f"The tensor {name} is in {first.file.name} and in {found[1].file.name} too. {MEND}"
            )
        return first.spec
    for fragment in found:
        if (
            fragment.spec.name == name
            or len(fragment.spec.shape) != 1
            or fragment.spec.dtype != first.spec.dtype
        ):
            what = f"{fragment.spec.dtype} {fragment.spec.shape} under the name {fragment.spec.name}"
            raise DataError(
                f"{fragment.file.name} has {what}, where {name} lies in flat parts of {first.spec.dtype}. "
                f"{MEND}"
            )
    if first.begin:
        raise DataError(
            f"{first.file.name} has {name} from {first.begin:,} on, and what is before that is nowhere. "
            f"{MEND}"
        )
    for one, other in pairwise(found):
        if other.begin != one.end:
            how = "overlap" if other.begin < one.end else "leave a gap"
            raise DataError(
                f"{one.file.name} has {name} until {one.end:,} and {other.file.name} from {other.begin:,} "
                f"on: they {how}. {MEND}"
            )
    if min(shape, default=0) < 0 or found[-1].end != prod(shape):
        raise DataError(
            f"{found[-1].file.name} has the end of {name} at {found[-1].end:,}, and a tensor of the shape "
            f"{shape} is not that long. {MEND}"
        )
    return Spec(name=name, dtype=first.spec.dtype, shape=shape)
