"""A trained step as a PEFT adapter directory."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.errors import StageError
from tuner.models.checkpoint.config_files import read_json_object
from tuner.models.checkpoint.safetensors import Checkpoint, Spec, TensorSource
from tuner.models.checkpoint.write_safetensors import write_file
from tuner.models.lora.card import write_card
from tuner.models.lora.tensors import lora_pairs
from tuner.models.lora.tied_head import TiedHead, unties_head


def write_adapter(
    weights: TensorSource,
    settings: Path,
    out: Path,
    base_name: str,
    *,
    initial: Path | None = None,
    quant: str = "none",
    tie: TiedHead | None = None,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT does, and the same to the byte
    every time.

    weights    under PEFT's own names
    base_name  what PEFT loads the base by: a public name, never a local path
    initial    the values with which adapters began that took a part out of their base; what is written then
               belongs to the plain base, see `difference_tensors`

    quant      how the base was held (algo.quant)
    tie        the head and the embedding of the base where they are one matrix

    An adapter that is more than plain LoRA on the plain base gets a README.md besides, see
    `tuner.models.lora.card`.
    """
    config = read_json_object(settings) | {"base_model_name_or_path": base_name, "inference_mode": True}
    specs, value = weights.specs, weights.__getitem__
    if initial is not None:
        config |= difference_settings(config)
        specs, value = difference_tensors(weights, Checkpoint([initial]))
    write_file(out / "adapter_model.safetensors", specs.values(), value)
    config.pop("peft_version", None)
    ordered = {
        key: sorted(value) if key == "target_modules" and isinstance(value, list) else value
        for key, value in config.items()
    }
    (out / "adapter_config.json").write_text(
        json.dumps(ordered, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    write_card(
        out,
        config,
        base_name or "BASE",
        quant=quant,
        split=unties_head(tie, lora_pairs(config, without_token_rows(specs))),
    )


def without_token_rows(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Those of an adapter's tensors that are no rows of tokens."""
    return {name: spec for name, spec in specs.items() if ".token_adapter." not in name}


def difference_tensors(
    weights: TensorSource, initial: TensorSource
) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """An adapter of twice the rank for the plain base, of one that began as a part of it (A0, B0): s·(B·A -
    B0·A0) = s·[B, -B0]·[A; A0].

    What trained stood on W - s·B0·A0, rounded to the base's dtype; to that rounding, it is what the plain W
    and this adapter are. Magnitudes (DoRA) and rows of tokens stay as they are.
    """
    places = {
        name: 0 if ".lora_A." in name else 1
        for name in weights.specs
        if ".lora_A." in name or ".lora_B." in name
    }
    if lacking := sorted(places.keys() - initial.specs.keys()):
        raise StageError(
            f"The values with which {lacking[0]} began are lost: what it has learned can't be told from "
            "them. Train again with redo=train."
        )

    def wide(name: str, spec: Spec) -> Spec:
        rows, columns = spec.shape
        return replace(spec, shape=(2 * rows, columns) if places[name] == 0 else (rows, 2 * columns))

    def value(name: str) -> Tensor:
        if name not in places:
            return weights[name]
        sign = 1 if places[name] == 0 else -1
        return torch.cat([weights[name], sign * initial[name].to(weights[name].dtype)], dim=places[name])

    return {name: wide(name, spec) if name in places else spec for name, spec in weights.specs.items()}, value


def difference_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an adapter of twice the rank with the same scale, as alpha / r.

    >>> difference_settings({"r": 16, "lora_alpha": 8, "use_rslora": True})
    {'r': 32, 'lora_alpha': 64, 'use_rslora': False}
    """
    r, alpha = int(settings["r"]), float(settings["lora_alpha"])
    scale = alpha / sqrt(r) if settings.get("use_rslora") else alpha / r
    whole = 2 * r * scale
    return {"r": 2 * r, "lora_alpha": int(whole) if whole.is_integer() else whole, "use_rslora": False}
