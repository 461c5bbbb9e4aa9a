"""A tensor that is made of tensors of the other layout, and a checkpoint of such tensors. Nothing is read
until one is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tuner.models.checkpoint.safetensors import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedTensor:
    """One tensor, and how it is made."""

    spec: Spec
    """its name, dtype and shape"""
    sources: tuple[str, ...]
    """the tensors of the other layout that it is made of, by name"""
    make: Callable[..., Tensor]
    """their values, in that order → its value. Cuts and joins only, unless its family says otherwise"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeCheckpoint:
    """A checkpoint as a class of transformers reads it."""

    config: Mapping[str, Any]
    """config.json, whole"""
    tensors: Sequence[MappedTensor]
    generation: Mapping[str, Any] = field(default_factory=dict)
    """what generation_config.json says where the repository's does not: the ids that begin, end and pad"""
    kept: tuple[str, ...] = ()
    """tensors of the original that can't be made again from the native ones: they are kept beside it, for
    the way back
    """
    warnings: tuple[str, ...] = ()
    """what users should know, such as a window beyond which the two differ"""


def renamed(spec: Spec, name: str) -> MappedTensor:
    """The same tensor under another name."""
    return MappedTensor(
        spec=Spec(name=name, dtype=spec.dtype, shape=spec.shape), sources=(spec.name,), make=_same
    )


def _same(value: Tensor) -> Tensor:
    return value
