"""Which tensors of a family's own layout are which of the native one: stated once, read in both
directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.safetensors import FLOATS, Spec
from tuner.models.layouts.mapped_tensor import MappedTensor, renamed

Shape = tuple[int, ...]

BUFFERS = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""how the tensors end that some families store and compute anew"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusion:
    """How one tensor holds query, key and value: so many groups one after the other, in each of them so many
    heads of each kind.

    One group is [all q; all k; all v]; a group for each head is [q; k; v] head by head; a group for each
    key/value head lies between.
    """

    groups: int
    heads: tuple[int, int, int]
    """of query, key and value, in each group"""
    dim: int
    """rows of a head"""

    def rows(self, part: int) -> int:
        """Rows of the query (0), the key (1) or the value (2)."""
        return self.groups * self.heads[part] * self.dim

    def cut(self, fused: Tensor, part: int) -> Tensor:
        """The rows of one part, heads in order. With two groups of two query heads, dim 1, the rows q0 q1 k0
        v0 q2 q3 k1 v1 give

        part 0: q0 q1 q2 q3    part 1: k0 k1    part 2: v0 v1
        """
        by_head = fused.reshape(self.groups, sum(self.heads), self.dim, *fused.shape[1:])
        start = sum(self.heads[:part])
        return by_head[:, start : start + self.heads[part]].flatten(0, 2).contiguous()

    def join(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What `cut` takes apart."""
        parts = [
            part.reshape(self.groups, heads, self.dim, *part.shape[1:])
            for part, heads in zip((query, key, value), self.heads, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(0, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A checkpoint's tensors under both layouts."""

    layout: str
    """the family, for messages"""
    same: Mapping[str, tuple[str, Shape]]
    """original → native, and the shape of both: they differ in name only"""
    fusion: Fusion | None = None
    fused: Mapping[str, tuple[tuple[str, str, str], Shape]] = field(default_factory=dict)
    """original → native query, key and value, and what of the shape follows the rows: nothing for a bias"""

    def to_native(self, specs: Mapping[str, Spec]) -> list[MappedTensor]:
        """The native tensors, made of the original ones. Raises DataError unless `specs` are exactly
        these, buffers aside.
        """
        expected = {name: shape for name, (_, shape) in self.same.items()}
        expected |= {
            name: (sum(map(self._fusion.rows, range(3))), *tail) for name, (_, tail) in self.fused.items()
        }
        check_tensors(
            self.layout, {name: spec for name, spec in specs.items() if name not in buffers(specs)}, expected
        )
        tensors = [renamed(specs[name], native) for name, (native, _) in self.same.items()]
        for name, (natives, tail) in self.fused.items():
            tensors += [self._cut(specs[name], native, part, tail) for part, native in enumerate(natives)]
        return tensors

    def to_original(self, specs: Mapping[str, Spec]) -> list[MappedTensor]:
        """The original tensors, made of the native ones. Raises DataError unless `specs` are exactly
        these.
        """
        expected = {native: shape for native, shape in self.same.values()}
        for natives, tail in self.fused.values():
            expected |= {native: (self._fusion.rows(part), *tail) for part, native in enumerate(natives)}
        check_tensors(f"rewritten {self.layout}", specs, expected)
        tensors = [renamed(specs[native], name) for name, (native, _) in self.same.items()]
        return tensors + [
            self._join([specs[native] for native in natives], name, tail)
            for name, (natives, tail) in self.fused.items()
        ]

    @property
    def _fusion(self) -> Fusion:
        if self.fusion is None:
            raise ValueError("a table with fused tensors says how they are fused")
        return self.fusion

    def _cut(self, spec: Spec, native: str, part: int, tail: Shape) -> MappedTensor:
        fusion = self._fusion
        shape = (fusion.rows(part), *tail)
        return MappedTensor(
            spec=Spec(name=native, dtype=spec.dtype, shape=shape),
            sources=(spec.name,),
            make=lambda fused: fusion.cut(fused, part),
        )

    def _join(self, specs: list[Spec], name: str, tail: Shape) -> MappedTensor:
        fusion = self._fusion
        if len(dtypes := {spec.dtype for spec in specs}) > 1:
            names = ", ".join(f"{spec.name} {spec.dtype}" for spec in specs)
            raise DataError(
                f"{names}: these become one tensor, {name}, and should be of one type. Write the model in "
                "one, such as bf16."
            )
        shape = (sum(map(fusion.rows, range(3))), *tail)
        return MappedTensor(
            spec=Spec(name=name, dtype=dtypes.pop(), shape=shape),
            sources=tuple(spec.name for spec in specs),
            make=fusion.join,
        )


def buffers(specs: Mapping[str, Spec]) -> tuple[str, ...]:
    """Buffers that the original stores and computes anew: no native tensor is made of them, and they are kept
    for the way back.
    """
    return tuple(name for name in specs if name.endswith(BUFFERS))


def check_tensors(layout: str, specs: Mapping[str, Spec], expected: Mapping[str, Shape]) -> None:
    """Raise DataError unless the tensors are exactly the expected ones, in names, shapes and a floating
    type.
    """
    if missing := [name for name in expected if name not in specs]:
        raise DataError(
            f"The {layout} checkpoint lacks {len(missing)} of the {len(expected)} tensors that its "
            f"config.json asks for, first {missing[0]}. Get the weights and config.json again, from one "
            "place."
        )
    if strange := [name for name in specs if name not in expected]:
        raise DataError(
            f"The {layout} checkpoint holds {len(strange)} tensors that its layout does not have, first "
            f"{strange[0]:.120}. A quantised or adapted checkpoint, or one that reads images, can't be "
            "rewritten: take the plain one. A layout that was guessed wrongly is set by model.layout."
        )
    for name, shape in expected.items():
        if (spec := specs[name]).shape != shape:
            raise DataError(
                f"{name} of the {layout} checkpoint has the shape {list(spec.shape)}, where its config.json "
                f"asks for {list(shape)}. Get the weights and config.json again, from one place."
            )
        if spec.dtype not in FLOATS:
            raise DataError(
                f"{name} of the {layout} checkpoint is of type {spec.dtype}, where one of "
                f"{', '.join(sorted(FLOATS))} was expected."
            )
