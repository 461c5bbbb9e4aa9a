"""Safetensors written one tensor at a time, as one file or as shards with an index.

As the header comes first and only needs dtypes and shapes, a model of any size is written with no more than
one tensor in memory. The bytes depend on names, dtypes, shapes and values alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tuner.models.checkpoint.files import INDEX, SINGLE
from tuner.models.checkpoint.safetensors import DTYPES, Spec, natural_key

SHARD_LIMIT = 5 * 10**9
"""bytes of a shard, unless a tensor alone is larger"""


def split_shards(specs: Iterable[Spec], limit: int = SHARD_LIMIT) -> list[list[Spec]]:
    """Specs in natural order, cut into shards of at most `limit` bytes (a larger tensor is a shard of its
    own).
    """
    shards: list[list[Spec]] = []
    room = 0
    for spec in sorted(specs, key=lambda spec: natural_key(spec.name)):
        if not shards or spec.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(spec)
        room -= spec.nbytes
    return shards


def _silent(_: Spec) -> None:
    return None


def write_file(
    path: Path,
    specs: Iterable[Spec],
    value: Callable[[str], Tensor],
    *,
    tick: Callable[[Spec], None] = _silent,
) -> None:
    """Write one file, asking `value` for each tensor by name when its turn has come, and telling `tick` when
    it is written.

    A tensor that isn't as its spec says is a bug and raises ValueError.
    """
    # Wide types first keeps every tensor aligned, as the reference writer does.
    ordered = sorted(specs, key=lambda spec: (-DTYPES[spec.dtype].itemsize, natural_key(spec.name)))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in ordered:
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in ordered:
            tensor = value(spec.name)
            if tensor.dtype != DTYPES[spec.dtype] or tuple(tensor.shape) != spec.shape:
                raise ValueError(
                    f"{spec.name} is {tensor.dtype} {tuple(tensor.shape)}, announced as {spec.dtype} "
                    f"{spec.shape}"
                )
            # A view as bytes needs at least one dimension and at least one element.
            file.write(
                tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                if tensor.numel()
                else b""
            )
            tick(spec)


def write_checkpoint(
    directory: Path,
    specs: Iterable[Spec],
    value: Callable[[str], Tensor],
    *,
    limit: int = SHARD_LIMIT,
    tick: Callable[[Spec], None] = _silent,
) -> list[str]:
    """Write a checkpoint in the Hugging Face layout and return the names of its files.

    One shard is `model.safetensors`; more are `model-00001-of-00003.safetensors` … with an index beside them.
    """
    shards = split_shards(specs, limit)
    if len(shards) == 1:
        write_file(directory / SINGLE, shards[0], value, tick=tick)
        return [SINGLE]
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = shard_name(number, len(shards))
        write_file(directory / name, shard, value, tick=tick)
        where |= {spec.name: name for spec in shard}
    write_index(
        directory,
        {
            "metadata": {"total_size": sum(spec.nbytes for shard in shards for spec in shard)},
            "weight_map": where,
        },
    )
    return [*dict.fromkeys(where.values()), INDEX]


def shard_name(number: int, of: int) -> str:
    """What the shard is called that is the `number`-th, from 1, of so many."""
    return f"model-{number:05}-of-{of:05}.safetensors"


def write_index(directory: Path, index: Mapping[str, object]) -> None:
    """Write the index of a checkpoint in several files."""
    (directory / INDEX).write_text(
        json.dumps(index, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
