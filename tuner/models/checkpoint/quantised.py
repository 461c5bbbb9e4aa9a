"""Whether a checkpoint is quantised already, and by which method: as its config.json says, or else its
tensors.

Two methods of publishers, FP8 and MXFP4, are undone when the model is fetched (tuner.models.dequantize). All
others are refused: an adapter can't be merged into such weights, nor can they be trained. Standard library
only: a plan asks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.files import decode_json
from tuner.models.checkpoint.files import parse_config
from tuner.models.checkpoint.headers import read_types

VERSIONS = {"fp8": 1, "mxfp4": 1}
"""the methods that are undone; bumped when the same files would become other values"""
SETTINGS = ("quantization_config", "compression_config", "quantization")
"""the keys of config.json that tell of a quantisation: of all tools, of older compressed-tensors, of MLX"""
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""files beside the weights by which older tools tell of theirs"""
WORDS = {
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "aqlm": "AQLM",
    "quanto": "Quanto",
    "fbgemm_fp8": "FBGEMM FP8",
    "modelopt": "NVIDIA ModelOpt",
    "nvfp4": "NVFP4",
    "mlx": "MLX",
    "exl2": "EXL2",
    "exl3": "EXL3",
}
"""what methods are called, where that is not their name"""
MARKS = (
    (r"\.(?:absmax|quant_map|nested_absmax)$|\.quant_state\.bitsandbytes__", "bitsandbytes"),
    (r"\.SCB$", "bitsandbytes"),
    (r"\.g_idx$", "gptq"),
    (r"\.qweight$", "awq"),
    (r"\.weight_packed$|\.weight_global_scale$", "compressed-tensors"),
    (r"\.weight_scale_2$", "modelopt"),
    (r"\.W_q$", "hqq"),
    (r"\.codebooks$", "aqlm"),
    (r"\.weight\._data$|\.weight\._scale$", "quanto"),
    (r"_scale_inv$", "fp8"),
    (r"\w_blocks$", "mxfp4"),
)
"""names of tensors that a plain checkpoint does not have"""
MARKED = re.compile("|".join(pattern for pattern, _ in MARKS))
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
WHOLE = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
SCALES = ("_scale_inv", "_scale")
"""what is behind a tensor's name in that of its scales"""
WEIGHT_SCALES = (".scale", ".qscale_weight")
"""what stands in the place of `.weight` in some publishers' names of the scales (DeepSeek V4, Mistral)"""
ACTIVATIONS = re.compile(
    r"(?:^|[._])(?:input|activation|act|output|prob|[kqv]|kv)_scale(?:_inv|_ub)?$|\.qscale_act$"
)
"""scales of what is computed, not of weights: of no use to the weights' values"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """A quantisation."""

    method: str
    """as config.json calls it; `fp8` and `mxfp4` are undone"""
    words: str
    """what it is called, with the bits of a weight where they are told"""
    said: str
    """what tells, in words"""

    @property
    def undone(self) -> bool:
        return self.method in VERSIONS


def by_config(config: Mapping[str, Any]) -> Quantisation | None:
    """What a config.json says: at its top, or in its language part.

    >>> by_config({"quantization_config": {"quant_method": "awq", "bits": 4}}).words
    'AWQ, 4 bits'
    >>> by_config({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}).method
    'fp8'
    """
    for part in (config, *(config.get(name) for name in ("text_config", "language_config", "llm_config"))):
        for key in SETTINGS:
            if isinstance(part, Mapping) and isinstance(said := part.get(key), Mapping) and said:
                method = _method(said, key)
                return Quantisation(method=method, words=_words(method, said), said=f"{key} in config.json")
    bits = config.get("quantization_bit")
    if isinstance(bits, int) and not isinstance(bits, bool) and bits > 0:  # ChatGLM's own
        return Quantisation(method="chatglm", words=f"{bits} bits", said="quantization_bit in config.json")
    return None


def by_types(types: Mapping[str, str]) -> Quantisation | None:
    """What the names of tensors tell, with their types where these are known (else empty).

    >>> by_types({"a.up_proj.qweight": "I32", "a.up_proj.g_idx": "I32"}).words
    'GPTQ'
    >>> by_types({"a.up_proj.weight": "F8_E4M3", "a.up_proj.weight_scale_inv": "F32"}).method
    'fp8'
    """
    marked = [name for name in types if MARKED.search(name)]
    for pattern, method in MARKS:
        found = re.compile(pattern)
        if name := next((name for name in marked if found.search(name)), None):
            if method == "mxfp4" and f"{name.removesuffix('_blocks')}_scales" not in types:
                continue
            return Quantisation(method=method, words=WORDS[method], said=f"the tensor {name:.120}")
    if name := next((name for name, kind in types.items() if kind in FP8), None):
        return Quantisation(method="fp8", words="FP8", said=f"the tensor {name:.120}, which is {types[name]}")
    if name := next(
        (
            name
            for name, kind in types.items()
            if kind in WHOLE and name.endswith((".weight", "_proj", ".weight_int8"))
        ),
        None,
    ):
        return Quantisation(
            method="integers",
            words="integer weights",
            said=f"the tensor {name:.120}, which is {types[name]}",
        )
    return None


def of_directory(directory: Path) -> Quantisation | None:
    """What a model directory tells. Raises DataError for a config.json that can't be read."""
    config = directory / "config.json"
    size = config.stat().st_size
    said = by_config(parse_config(config.read_bytes(), size, str(config), "Get it again."))
    if said is None:
        said = next((_beside(name) for name in BESIDE if (directory / name).is_file()), None)
    return said or by_types(
        {
            name: kind
            for path in sorted(directory.glob("*.safetensors"))
            for name, kind in read_types(path).items()
        }
    )


def of_repository(
    config: Mapping[str, Any], names: Iterable[str], index: bytes | None
) -> Quantisation | None:
    """What a repository tells before its weights are here: config.json, the names of its files, and the
    index of the weights, where there is one.
    """
    beside = next((_beside(name) for name in names if name in BESIDE), None)
    return by_config(config) or beside or (by_types(dict.fromkeys(_indexed(index), "")) if index else None)


def _beside(name: str) -> Quantisation:
    method = BESIDE[name]
    return Quantisation(method=method, words=WORDS[method], said=f"{name} beside the weights")


def _indexed(index: bytes) -> list[str]:
    try:
        return [str(name) for name in decode_json(index)["weight_map"]]
    except (ValueError, KeyError, TypeError):
        return []  # what is wrong with it is said where its files are chosen


def _method(said: Mapping[str, Any], key: str) -> str:
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "bitsandbytes"
    mlx = key == "quantization" or {"group_size", "mode"} <= said.keys()
    method = str(said.get("quant_method") or ("mlx" if mlx else "unknown"))
    method = method.lower().replace("compressed_tensors", "compressed-tensors")
    if method in ("fp8", "mxfp8"):
        return "fp8" if said.get("expert_dtype", "fp8") == "fp8" else "fp8 with experts in FP4"
    if method == "compressed-tensors" or (method == "unknown" and key == "compression_config"):
        return "fp8" if _plain_fp8(said) else "compressed-tensors"
    return method


def _plain_fp8(said: Mapping[str, Any]) -> bool:
    """Whether what compressed-tensors wrote is FP8 times a scale, and nothing besides."""
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or said.get("transform_config"):
        return False
    sparse = said.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        return False
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        kind = (
            (group.get("format") if isinstance(group, Mapping) else None)
            or said.get("format")
            or "float-quantized"
        )
        if not isinstance(weights, Mapping) or kind not in ("float-quantized", "naive-quantized"):
            return False
        if (
            weights.get("type") != "float"
            or weights.get("num_bits") != 8
            or weights.get("symmetric", True) is not True
        ):
            return False
        if weights.get("strategy") not in ("tensor", "channel", "block"):
            return False
    return True


def _words(method: str, said: Mapping[str, Any]) -> str:
    name = WORDS.get(method, f"{method}" if method != "unknown" else "by a method that it does not name")
    four, eight = said.get("load_in_4bit"), said.get("load_in_8bit")
    bits = (
        4
        if four
        else 8
        if eight
        else next(
            (said[key] for key in ("bits", "w_bit", "num_bits", "nbits", "weight_bits") if said.get(key)),
            None,
        )
    )
    if bits is None and method == "compressed-tensors" and said.get("format"):
        return f"{name}, {str(said['format'])[:40]}"
    return f"{name}, {bits} bits" if isinstance(bits, int) else name


def plain_shapes(method: str | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a checkpoint has once it is dequantised.

    >>> plain_shapes("mxfp4", {"e.down_proj_blocks": (4, 64, 2, 16), "e.down_proj_scales": (4, 64, 2),
    ...     "norm.weight": (64,)})
    {'e.down_proj': (4, 64, 64), 'norm.weight': (64,)}
    """
    if method == "mxfp4":
        kept = {
            name: shape
            for name, shape in shapes.items()
            if not (name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in shapes)
        }
        return {
            name.removesuffix("_blocks"): unpacked_shape(shape) if is_mxfp4_blocks(name, shapes) else shape
            for name, shape in kept.items()
        }
    if method == "fp8":
        scales = {scale for name in shapes if (scale := scale_of(name, shapes)) is not None}
        return {
            name: shape
            for name, shape in shapes.items()
            if name not in scales and not ACTIVATIONS.search(name)
        }
    return dict(shapes)


def is_mxfp4_blocks(name: str, names: Mapping[str, Any]) -> bool:
    """Whether a tensor holds blocks of MXFP4."""
    return name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in names


def unpacked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of experts in MXFP4, [E, rows, blocks, 16 bytes of two values], as their class has them:
    inputs first.
    """
    *experts, rows, blocks, width = shape
    return (*experts, blocks * width * 2, rows)


def scale_of(name: str, names: Mapping[str, Any]) -> str | None:
    """The tensor that holds the scales of another, where there is one."""
    stem = name.removesuffix(".weight")
    others = [f"{stem}{ending}" for ending in WEIGHT_SCALES] if stem != name else []
    return next(
        (scale for scale in (*(f"{name}{ending}" for ending in SCALES), *others) if scale in names), None
    )


def parameters_in(method: str | None, size: int) -> int:
    """About how many parameters lie in so many bytes of weights: 16 bits each, 8, or 4 with 8 more for 32 of
    them.
    """
    return {"fp8": size, "mxfp4": size * 32 // 17}.get(method or "", size // 2)
