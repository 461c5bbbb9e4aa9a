"""What an adapter consists of, from its settings and the names of its tensors: pairs A and B, magnitudes,
and rows of tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from tuner.errors import StageError
from tuner.models.checkpoint.safetensors import Spec

PLAIN: dict[str, Any] = {
    "bias": "none",
    "lora_bias": False,
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "layer_replication": None,
    "use_qalora": False,
    "modules_to_save": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "lora_ga_config": None,
}
"""what an adapter's settings say when it is plain LoRA, or DoRA"""

INITS = ("True", "False", "default", "gaussian", "orthogonal", "eva")
"""how adapters begin that leave their base as it is"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraPair:
    """The adapter of one weight."""

    a: str
    """name of A, [r, inputs]"""
    b: str
    """name of B, [outputs, r]"""
    scale: float
    """alpha / r, or alpha / sqrt(r) where the adapter says so (arXiv:2312.03732)"""
    magnitude: str | None = None
    """name of DoRA's magnitudes, [outputs]"""
    embedding: bool = False
    """whether the weight is an embedding, [tokens, width]: what it is the weight of has tokens as inputs,
    so A is [r, tokens] and B [width, r]
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRows:
    """The rows of one weight that trained by themselves: those of new tokens, in the embedding or in a
    head of its own.
    """

    tensor: str
    """name of the rows, [tokens, width]: whole rows, no differences"""
    ids: tuple[int, ...]
    """which rows they are, in that order"""


def token_rows(settings: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, TokenRows]:
    """Which weight each tensor of rows belongs to, by the name of the module that PEFT has wrapped.

    PEFT's `trainable_token_indices` is a list of ids for the embedding, or one such list for each module, by
    its name or the end of it. Raises StageError where it doesn't say which rows they are.
    """
    said = settings.get("trainable_token_indices") or {}
    lists: Mapping[str, list[int]] = said if isinstance(said, dict) else {"": said}
    found: dict[str, TokenRows] = {}
    for tensor, spec in specs.items():
        if match := re.fullmatch(r"base_model\.model\.(.+)\.token_adapter\.trainable_tokens_delta", tensor):
            ids = next(
                (ids for end, ids in lists.items() if not end or f".{match[1]}".endswith(f".{end}")), []
            )
            if spec.shape[:1] != (len(set(ids)),) or len(set(ids)) != len(ids):
                raise StageError(
                    f"The adapter's rows for {match[1]} are {spec.shape}, and trainable_token_indices in its "
                    f"adapter_config.json names {len(set(ids))} tokens for them. The two files are not of "
                    "one adapter: take both from the same."
                )
            found[f"{match[1]}.weight"] = TokenRows(tensor=tensor, ids=tuple(ids))
    return found


def lora_pairs(settings: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, LoraPair]:
    """Which weight each pair of adapter tensors belongs to, by the name of the module that PEFT has wrapped.

    PEFT writes `base_model.model.` + the module's name + `.lora_A.weight`, or `.lora_embedding_A` for an
    embedding. Raises StageError for an adapter that is more than plain LoRA or DoRA, for one whose base
    has been changed, and for a tensor that belongs to no pair.
    """
    if odd := {key: settings[key] for key, plain in PLAIN.items() if (settings.get(key) or plain) != plain}:
        said = ", ".join(f"{key}={value}" for key, value in odd.items())
        raise StageError(
            f"The adapter says {said}. Merging knows LoRA (W + alpha/r · B·A) and DoRA only; use the adapter "
            "as it is, with PEFT."
        )
    if str(init := settings.get("init_lora_weights", True)) not in INITS:
        raise StageError(
            f"The adapter says init_lora_weights={init}: it began with a part of its base's weights, and "
            "belongs to what was left of them. Save it as a difference (PEFT's "
            "path_initial_model_for_weight_conversion), and merge that."
        )
    found: dict[str, LoraPair] = {}
    for a in specs:
        if match := re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:A\.weight|embedding_A)", a):
            embedding = a.endswith("_A")
            b = f"{a.removesuffix('_A')}_B" if embedding else a.replace(".lora_A.", ".lora_B.")
            rank = specs[a].shape[0]
            alpha = float(str(settings["lora_alpha"]))
            magnitude = (
                f"base_model.model.{match[1]}.lora_magnitude_vector" if settings.get("use_dora") else None
            )
            if b in specs and (magnitude is None or (magnitude in specs and not embedding)):
                scale = alpha / sqrt(rank) if settings.get("use_rslora") else alpha / rank
                found[f"{match[1]}.weight"] = LoraPair(
                    a=a, b=b, scale=scale, magnitude=magnitude, embedding=embedding
                )
    used = {name for pair in found.values() for name in (pair.a, pair.b, pair.magnitude)}
    if left := sorted(specs.keys() - used):
        raise StageError(
            f"Of the adapter's {len(specs)} tensors {len(left)} belong to no pair of A and B, first "
            f"{left[0]}: merging would lose them."
        )
    return found
