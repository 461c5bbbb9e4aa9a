"""Safetensors, read: what a file holds from its header, held strictly to the format, and tensors one at a
time.

A file is eight bytes of header length (little endian), the header (JSON: name → dtype, shape, offsets) and
the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from tuner.errors import DataError
from tuner.files import decode_json
from tuner.models.checkpoint.headers import HEADER

DIMENSIONS, LONGEST = 8, 1 << 48
"""how many sides of a tensor are believed, and how long they are; its bytes are counted apart"""
PICKLED_AS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""how a pickle of PyTorch's begins, in a zip file or bare"""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """A tensor, without its values."""

    name: str
    dtype: str
    """in the format's own words: BF16, F32 …"""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * DTYPES[self.dtype].itemsize


def read_specs(path: Path) -> dict[str, Spec]:
    """The tensors of one file, from its header alone, by name.

    The header is held to the format's rules, since sizes and places are later taken from it: each tensor is
    as long as its dtype and shape say, and together they fill the file, without a hole or an overlap. Raises
    DataError for any other file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if head == b"version ":
            raise DataError(
                f"{path.name} is a Git LFS pointer, not the weights themselves. Fetch them with: git lfs pull"
            )
        if len(head) < 8 or length > size - 8:
            if head.startswith(PICKLED_AS):
                raise DataError(
                    f"{path.name} is a pickle of PyTorch's under another name: it is not opened. Get "
                    "safetensors from a source that you trust."
                )
            raise DataError(
                f"{path.name} is not a safetensors file, or only the beginning of one ({size} bytes). "
                "Download it again."
            )
        if length > HEADER:
            raise _lies(path, f"is {length:,} bytes long, where the format allows {HEADER:,}")
        try:
            header = decode_json(file.read(length), object_pairs_hook=_once)
            header.pop("__metadata__", None)
            found = {name: (t["dtype"], t["shape"], t["data_offsets"]) for name, t in header.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path.name} has a header that is not a safetensors header ({error}). Download it again."
            ) from error
    specs = {}
    for name, (dtype, shape, _) in found.items():
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise DataError(
                f"{path.name} holds tensors of type {str(dtype)[:40]}; known are {', '.join(DTYPES)}."
            )
        if not (
            isinstance(shape, list)
            and len(shape) <= DIMENSIONS
            and all(type(side) is int and 0 <= side < LONGEST for side in shape)
        ):
            raise _lies(path, f"gives {name[:80]!r} the shape {str(shape)[:80]}, which no tensor has")
        specs[name] = Spec(name=name, dtype=dtype, shape=tuple(shape))
    end = _end(path, specs, {name: offsets for name, (_, _, offsets) in found.items()})
    if 8 + length + end != size:
        raise DataError(
            f"{path.name} is {size} bytes long where its header says {8 + length + end}: the download or "
            "copy broke off. Get it again."
        )
    return specs


def _end(path: Path, specs: dict[str, Spec], offsets: dict[str, object]) -> int:
    """Where the tensors end, counted from the header's end. Raises DataError unless they lie one after the
    other, each as long as it has to be.
    """
    places: list[tuple[int, int, str]] = []
    for name, place in offsets.items():
        if not (isinstance(place, list) and len(place) == 2 and all(type(offset) is int for offset in place)):
            raise _lies(path, f"does not have two offsets for {name[:80]!r}, but {str(place)[:80]}")
        first, last = place
        if last - first != specs[name].nbytes:
            spec = specs[name]
            raise _lies(
                path,
                f"gives {name[:80]!r} {last - first:,} bytes, and {spec.dtype} of the shape "
                f"{list(spec.shape)} has {spec.nbytes:,}",
            )
        places.append((first, last, name))
    end = 0
    for first, last, name in sorted(places):
        if first != end:
            raise _lies(
                path, f"has {name[:80]!r} begin at {first:,}, where what is before it ends at {end:,}"
            )
        end = last
    return end


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is in it twice")
    return found


def _lies(path: Path, what: str) -> DataError:
    return DataError(
        f"{path.name} is not opened: its header {what}. The file is damaged or malicious. Get it "
        "again, from a source that you trust."
    )


class Checkpoint:
    """The tensors of one or more files: all specs at once, values one at a time, from memory-mapped files."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.specs: dict[str, Spec] = {}
        self._files: dict[str, Path] = {}
        for path in files:
            specs = read_specs(path)
            if twice := self.specs.keys() & specs.keys():
                raise DataError(
                    f"The tensor {min(twice)} is in {path.name} and in {self._files[min(twice)].name} too."
                )
            self.specs |= specs
            self._files |= dict.fromkeys(specs, path)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


class TensorSource(Protocol):
    """The tensors of a trained step by name, each whole and read when it is asked for."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """what they are, without reading them"""

    def __getitem__(self, name: str, /) -> Tensor: ...


def natural_key(name: str) -> list[str | int]:
    """A sort key that counts: `layers.2` before `layers.10`.

    >>> sorted(["layers.10", "layers.2"], key=natural_key)
    ['layers.2', 'layers.10']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def main_dtype(specs: Iterable[Spec]) -> str:
    """The type that holds the most bytes: what people mean by the type of a checkpoint. Ties go to the
    first by name.
    """
    sizes: dict[str, int] = {}
    for spec in sorted(specs, key=lambda spec: spec.dtype):
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return max(sizes, key=sizes.__getitem__)


def specs_in_dtype(specs: Mapping[str, Spec], dtype: str) -> dict[str, Spec]:
    """The specs with the checkpoint's own type replaced by `dtype`.

    Tensors of another type stay as they are: integers, and the few that a family keeps in fp32 inside a bf16
    checkpoint.
    """
    own = main_dtype(specs.values())
    return {
        name: replace(spec, dtype=dtype) if spec.dtype == own and own in FLOATS else spec
        for name, spec in specs.items()
    }
