"""A LoRA adapter written into its base model: W + s·B·A, tensor by tensor, never the whole model in memory.

The product is the one of arXiv:2106.09685, section 4.1, in the order PEFT's own merge computes it, in fp32, and rounded once to bf16.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from tuner.errors import StageError
from tuner.models.files import weight_files
from tuner.models.shards import FLOATS, LIMIT, Checkpoint, Spec, main_dtype, write_checkpoint

PLAIN = {
    "bias": "none",
    "lora_bias": False,
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "layer_replication": None,
    "use_dora": False,
    "use_qalora": False,
}
"""what an adapter's settings say when it is the plain product"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The adapter of one weight."""

    a: str
    """name of A, [r, inputs]"""
    b: str
    """name of B, [outputs, r]"""
    scale: float
    """alpha / r, or alpha / sqrt(r) where the adapter says so"""


def pairs(settings: dict[str, object], specs: dict[str, Spec]) -> dict[str, Pair]:
    """Which weight of the base each pair of adapter tensors belongs to.

    PEFT writes `base_model.model.` + the module's name + `.lora_A.weight`; without both it is the name in the base's checkpoint.
    Raises StageError for an adapter that is more than the plain product, and for a tensor that belongs to no pair.
    """
    if odd := {key: settings[key] for key, plain in PLAIN.items() if settings.get(key, plain) != plain}:
        said = ", ".join(f"{key}={value}" for key, value in odd.items())
        raise StageError(f"The adapter says {said}. Merging knows plain LoRA (W + alpha/r · B·A) only; use the adapter as it is, with PEFT.")
    found: dict[str, Pair] = {}
    for a in specs:
        if match := re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", a):
            b = a.replace(".lora_A.", ".lora_B.")
            rank = specs[a].shape[0]
            alpha = float(str(settings["lora_alpha"]))
            if b in specs:
                found[f"{match[1]}.weight"] = Pair(a=a, b=b, scale=alpha / sqrt(rank) if settings.get("use_rslora") else alpha / rank)
    used = {name for pair in found.values() for name in (pair.a, pair.b)}
    if left := sorted(specs.keys() - used):
        raise StageError(f"Of the adapter's {len(specs)} tensors {len(left)} belong to no pair of A and B, first {left[0]}: merging would lose them.")
    return found


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale · B·A in fp32. W is [outputs, inputs], A [r, inputs], B [outputs, r]; the result is like W.

    >>> merged(torch.eye(2), torch.ones(1, 2), torch.tensor([[1.0], [0.0]]), 0.5).tolist()
    [[1.5, 0.5], [0.0, 1.0]]
    """
    return weight.float() + (b.float() @ a.float()) * scale


def rounded(specs: dict[str, Spec], dtype: str) -> dict[str, Spec]:
    """The specs with the checkpoint's own type replaced by `dtype`.

    Tensors of another type stay as they are: integers, and the few that a family keeps in fp32 inside a bf16 checkpoint.
    """
    own = main_dtype(specs.values())
    return {name: replace(spec, dtype=dtype) if spec.dtype == own and own in FLOATS else spec for name, spec in specs.items()}


def overlay(base: Path, adapter: Path) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """The base with the adapter in it: what its tensors are, in bf16, and a function that computes one by its name.

    Raises StageError when the adapter doesn't fit the base.
    """
    weights = Checkpoint(weight_files(base))
    deltas = Checkpoint([adapter / "adapter_model.safetensors"])
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    plan = pairs(settings, deltas.specs)
    for name, pair in plan.items():
        expected = (deltas.specs[pair.b].shape[0], deltas.specs[pair.a].shape[1])
        if name not in weights.specs:
            raise StageError(f"The adapter has a part for {name}, and the base has no such tensor: it was made for another model or layout.")
        if weights.specs[name].shape != expected or weights.specs[name].dtype not in FLOATS:
            spec = weights.specs[name]
            raise StageError(f"The adapter's part for {name} is {expected}, the base has {spec.dtype} {spec.shape}: it was made for another model.")
    specs = rounded(weights.specs, "BF16")
    specs |= {name: replace(specs[name], dtype="BF16") for name in plan}

    def value(name: str) -> Tensor:
        weight = weights[name]
        if name in plan:
            weight = merged(weight, deltas[plan[name].a], deltas[plan[name].b], plan[name].scale).to(torch.bfloat16)
        elif specs[name].dtype != weights.specs[name].dtype:
            weight = weight.to(torch.bfloat16)
        return weight

    return specs, value


def merge_adapter(base: Path, adapter: Path, out: Path, *, limit: int = LIMIT, tick: Callable[[Spec], None] = lambda _: None) -> list[str]:
    """Write the base with the adapter in it to `out` as a bf16 checkpoint, and return the names of its files.

    Raises StageError when the adapter doesn't fit the base.
    """
    specs, value = overlay(base, adapter)
    return write_checkpoint(out, specs.values(), value, limit=limit, tick=tick)
