"""A checkpoint in FP8 or MXFP4 rewritten in bf16, as transformers does it while loading (`dequantize=True`):
tensor by tensor, never the whole in memory.

FP8 is an 8-bit float times a scale: one for the tensor, for each row, or for each block of, say, 128 × 128.
MXFP4 is 32 values in 4 bits each, and an exponent that they share (Open Compute Project, Microscaling
Formats 1.0). Values are computed in fp32 and rounded to bf16 once.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.config_files import read_json_object
from tuner.models.checkpoint.files import copy_small_files
from tuner.models.checkpoint.quantised import (
    ACTIVATIONS,
    FP8,
    SCALES,
    SETTINGS,
    WEIGHT_SCALES,
    is_mxfp4_blocks,
    scale_of,
    unpacked_shape,
)
from tuner.models.checkpoint.safetensors import Checkpoint, Spec
from tuner.models.checkpoint.write_safetensors import write_checkpoint
from tuner.models.layouts.mapped_tensor import MappedTensor, renamed
from tuner.progress import progress_bar

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""what the 4 bits of MXFP4 stand for"""
ROWS = 4096
"""about so many rows are computed at once"""
AGAIN = "Get the weights and config.json again, from one place."


def dequantize_checkpoint(
    source: Mapping[str, Path],
    method: str,
    out: Path,
    *,
    say: Callable[[str], None],
) -> None:
    """Write the checkpoint whose files are `source` (name → path) in bf16 to `out`, with its small files;
    config.json says nothing of it any more.

    Raises DataError, before anything is written, for tensors whose scales are missing or do not fit.
    """
    weights = Checkpoint(path for name, path in sorted(source.items()) if name.endswith(".safetensors"))
    config = read_json_object(source["config.json"])
    made = {
        tensor.spec.name: tensor for tensor in dequantised_tensors(weights.specs, method, fp8_block(config))
    }

    def value(name: str) -> Tensor:
        result: Tensor = made[name].make(*(weights[part] for part in made[name].sources))
        return result

    copy_small_files(source, out)
    (out / "config.json").write_text(
        json.dumps(config_in_bf16(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    with progress_bar("dequantise", sum(tensor.spec.nbytes for tensor in made.values()), say) as advance:
        write_checkpoint(
            out,
            [tensor.spec for tensor in made.values()],
            value,
            tick=lambda spec: advance(spec.nbytes),
        )
    count = sum(len(tensor.sources) > 1 for tensor in made.values())
    say(f"{count:,} tensors in bf16; the other {len(made) - count:,} are as they were")


def config_in_bf16(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without its quantisation, with bf16 as its dtype; also in its language part.

    >>> config_in_bf16({"model_type": "llama", "torch_dtype": "float16",
    ...     "quantization_config": {"quant_method": "fp8"}})
    {'model_type': 'llama', 'torch_dtype': 'bfloat16', 'dtype': 'bfloat16'}
    """
    kept = {key: value for key, value in config.items() if key not in SETTINGS}
    for key, value in kept.items():
        if key in ("text_config", "language_config", "llm_config") and isinstance(value, dict):
            inner = {name: item for name, item in value.items() if name not in SETTINGS}
            kept[key] = inner | {name: "bfloat16" for name in ("dtype", "torch_dtype") if name in inner}
    return kept | {key: "bfloat16" for key in ("torch_dtype",) if key in kept} | {"dtype": "bfloat16"}


def fp8_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The rows and columns that share a scale of FP8, where config.json says them."""
    for part in (config, config.get("text_config"), config.get("language_config"), config.get("llm_config")):
        for said in (part.get(key) for key in SETTINGS) if isinstance(part, Mapping) else ():
            groups = said.get("config_groups") if isinstance(said, Mapping) else None
            inner = (
                [group["weights"].get("block_structure") for group in groups.values()]
                if isinstance(groups, Mapping)
                else []
            )
            sizes = (
                said.get("weight_block_size")
                if isinstance(said, Mapping) and not inner
                else next(iter(inner), None)
            )
            if (
                isinstance(sizes, list)
                and len(sizes) == 2
                and all(type(size) is int and size > 0 for size in sizes)
            ):
                return sizes[0], sizes[1]
    return None


def dequantised_tensors(
    specs: Mapping[str, Spec], method: str, block: tuple[int, int] | None = None
) -> list[MappedTensor]:
    """All tensors of the checkpoint in bf16, made of those that `specs` describe. Raises DataError where
    they can't be.
    """
    return _mxfp4(specs) if method == "mxfp4" else _fp8(specs, block)


def _fp8(specs: Mapping[str, Spec], block: tuple[int, int] | None) -> list[MappedTensor]:
    found, used = [], set()
    scaled = any(scale_of(name, specs) is not None for name, spec in specs.items() if spec.dtype in FP8)
    for name, spec in specs.items():
        if spec.dtype not in FP8:
            continue
        wide = Spec(name=name, dtype="BF16", shape=spec.shape)
        if (scale := scale_of(name, specs)) is None:
            if scaled:
                raise DataError(
                    f"{name} is in FP8 ({spec.dtype}) and has no scale, {name}{SCALES[0]} or "
                    f"{name}{SCALES[1]}, as others have. {AGAIN}"
                )
            found.append(MappedTensor(spec=wide, sources=(name,), make=_cast))
            continue
        used.add(scale)
        sizes = scale_block(name, spec.shape, specs[scale].shape, block)
        found.append(
            MappedTensor(
                spec=wide,
                sources=(name, scale),
                make=lambda value, scales, sizes=sizes: from_fp8(value, scales, sizes),
            )
        )
    endings = (*SCALES, *(f"{ending}_inv" for ending in WEIGHT_SCALES))
    for name, spec in specs.items():
        if spec.dtype in FP8 or name in used or ACTIVATIONS.search(name):
            continue
        plain = next(
            (
                name.removesuffix(ending)
                for ending in endings
                if name.endswith(ending) and name.removesuffix(ending) in specs
            ),
            None,
        )
        if plain is not None or name.endswith(SCALES[0]):
            kind = f"which is {specs[plain].dtype}" if plain else "which is not there"
            raise DataError(
                f"{name} is a scale of {plain or name.removesuffix(SCALES[0])}, {kind}: FP8 was expected. "
                f"{AGAIN}"
            )
        found.append(renamed(spec, name))
    return found


def scale_block(
    name: str, shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int]:
    """How many rows and columns of a tensor share a scale. Raises DataError where scales of that shape do not
    fit.

    >>> (scale_block("w", (576, 512), (5, 4), (128, 128)), scale_block("w", (6, 4), (), None),
    ...  scale_block("w", (6, 4), (6, 1), None))
    ((128, 128), (6, 4), (1, 4))
    """
    rows, columns = shape[-2:] if len(shape) > 1 else (1, *shape)
    grid = _grid(shape, scales)
    if grid is not None:
        down, across = grid
        if block and -(-rows // block[0]) == down and -(-columns // block[1]) == across:
            return block
        if rows % down == 0 and columns % across == 0:
            return rows // down, columns // across
    raise DataError(
        f"{name} is {list(shape)}, and its scales are {list(scales)}: they do not fit, with blocks of "
        f"{list(block) if block else 'any size'}. {AGAIN}"
    )


def _grid(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of the scales of one matrix; None where they are not of this tensor."""
    rows = shape[-2] if len(shape) > 1 else 1
    if all(side == 1 for side in scales):
        return 1, 1
    if len(scales) == 1:  # a number for each row, or for each of several matrices
        return (
            (rows, 1)
            if len(shape) == 2 and scales[0] == rows
            else (1, 1)
            if len(shape) == 3 and scales[0] == shape[0]
            else None
        )
    if len(scales) == len(shape) and scales[:-2] == shape[:-2] and 0 not in scales:
        return scales[-2], scales[-1]
    return None


def from_fp8(value: Tensor, scales: Tensor, sizes: tuple[int, int]) -> Tensor:
    """A tensor in FP8 times its scales, each of which is of a block of `sizes` rows and columns.

    >>> from_fp8(torch.ones(3, 2).to(torch.float8_e4m3fn), torch.tensor([[2.0], [3.0]]), (2, 2)).tolist()
    [[2.0, 2.0], [2.0, 2.0], [3.0, 3.0]]
    """
    # a byte is an exponent, as in MXFP8
    wide = (scales.float() - 127).exp2() if scales.dtype == torch.uint8 else scales.float()
    rows, columns = value.shape[-2:] if value.ndim > 1 else (1, *value.shape)
    matrices = value.reshape(-1, rows, columns)
    grids = wide.reshape(
        len(matrices) if wide.numel() >= len(matrices) else 1, -(-rows // sizes[0]), -(-columns // sizes[1])
    )
    out = torch.empty(matrices.shape, dtype=torch.bfloat16)
    step = sizes[0] * max(1, ROWS // sizes[0])
    for number, matrix in enumerate(matrices):
        grid = grids[min(number, len(grids) - 1)].repeat_interleave(sizes[1], dim=1)[:, :columns]
        for first in range(0, rows, step):
            part = matrix[first : first + step].float()
            of = torch.arange(first, first + len(part)) // sizes[0]
            out[number, first : first + step] = part * grid[of]
    return out.reshape(value.shape)


def _cast(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16)


def _mxfp4(specs: Mapping[str, Spec]) -> list[MappedTensor]:
    found = []
    for name, spec in specs.items():
        if name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in specs:
            continue
        if not is_mxfp4_blocks(name, specs):
            found.append(renamed(spec, name))
            continue
        scales = specs[f"{name.removesuffix('_blocks')}_scales"]
        if (
            len(spec.shape) != 4
            or spec.shape[:-1] != scales.shape
            or spec.dtype != "U8"
            or scales.dtype != "U8"
        ):
            raise DataError(
                f"{name} is {spec.dtype} {list(spec.shape)}, and its scales are {scales.dtype} "
                f"{list(scales.shape)}: bytes [experts, rows, blocks, 16] and [experts, rows, blocks] were "
                f"expected of MXFP4. {AGAIN}"
            )
        wide = Spec(name=name.removesuffix("_blocks"), dtype="BF16", shape=unpacked_shape(spec.shape))
        found.append(MappedTensor(spec=wide, sources=(name, scales.name), make=from_mxfp4))
    return found


def from_mxfp4(packed: Tensor, scales: Tensor) -> Tensor:
    """Experts in MXFP4, [E, rows, blocks, bytes], as their class has them: [E, inputs, rows]. Of a byte the
    lower four bits come first.

    >>> from_mxfp4(torch.tensor([[[[0x42]]]], dtype=torch.uint8), torch.tensor([[[128]]],
    ...     dtype=torch.uint8)).tolist()
    [[[2.0], [4.0]]]
    """
    values = torch.tensor(E2M1, dtype=torch.bfloat16)
    experts, rows, count, width = packed.shape
    out = torch.empty(experts, count * width * 2, rows, dtype=torch.bfloat16)
    for number in range(experts):
        numbers = torch.empty(rows, count, width * 2, dtype=torch.bfloat16)
        numbers[..., 0::2] = values[(packed[number] & 0x0F).int()]
        numbers[..., 1::2] = values[(packed[number] >> 4).int()]
        torch.ldexp(numbers, scales[number].int().sub(127).unsqueeze(-1), out=numbers)
        out[number] = numbers.reshape(rows, -1).T
    return out
