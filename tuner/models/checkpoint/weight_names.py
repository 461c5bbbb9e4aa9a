"""What a model's weights are called in its checkpoint. transformers renames on loading, and makes one weight
of several tensors (experts).

The way there is the one that `from_pretrained` goes and the way back the one of `save_pretrained`, so the
names are the checkpoint's own.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from tuner.errors import DataError, StageError
from tuner.models.checkpoint.meta_model import meta_model, stored_specs
from tuner.models.checkpoint.safetensors import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightNames:
    """Where each weight of a model comes from."""

    plain: Mapping[str, str]
    """weight → the checkpoint's tensor that it is, under the same name or another"""
    made: Mapping[str, tuple[str, ...]]
    """weight → the tensors that it is computed from (a layer's experts: all of theirs)"""
    split: frozenset[str]
    """weights that are parts of a larger tensor; none of them is in `plain`"""
    steps: tuple[Any, ...]
    """transformers' own transforms, those that had something to do"""


def map_names(model: PreTrainedModel, tensors: Iterable[str]) -> WeightNames:
    """Where each weight of `model` comes from in a checkpoint with these tensors. A tensor that the model
    has no use for is left out.
    """
    own = model.state_dict()
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    plain: dict[str, str] = {}
    made: dict[str, list[str]] = {}
    split: set[str] = set()
    # the loader's order, which one kind of renaming depends on
    for tensor in sorted(tensors, key=dot_natural_key):
        weight, pattern = rename_source_key(tensor, renamings, converters, model.base_model_prefix, own)
        if weight not in own and tensor in own:
            weight, pattern = tensor, None
        if weight not in own:
            continue
        if pattern is None:
            plain[weight] = tensor
            continue
        targets = next(step.target_patterns for step in converters if pattern in step.source_patterns)
        if len(targets) > 1:
            split |= {weight.replace(targets[0], target) for target in targets}
        else:
            made.setdefault(weight, []).append(tensor)
    return WeightNames(
        plain=plain,
        made={weight: tuple(parts) for weight, parts in made.items()},
        split=frozenset(split),
        steps=tuple(step for step in steps if step.was_used()),
    )


def checkpoint_names(directory: Path) -> dict[str, str]:
    """Weight → tensor, for the model in `directory` and each of its weights that is one whole tensor of the
    checkpoint.

    A text model: model.layers.0.… is called the same. A multimodal one: model.language_model.layers.0.… is
    language_model.model.layers.0.…
    """
    return dict(map_names(meta_model(directory), stored_specs(directory)).plain)


def check_fit(model: PreTrainedModel, names: WeightNames, specs: Mapping[str, Spec], directory: Path) -> None:
    """Raise DataError when the checkpoint lacks a parameter of `model`, or has one in another shape:
    before anything is allocated.
    """
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    shapes = {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for name, shape in shapes.items():
        if (tensor := names.plain.get(name)) and specs[tensor].shape != shape:
            raise DataError(
                f"The model in {directory} can't be loaded: its tensor {tensor} is {specs[tensor].shape}, "
                f"and its config.json asks for {shape}. One of the two belongs to another model: get both "
                "again."
            )
    there = names.plain.keys() | names.made.keys() | names.split
    there |= {name for pair in tied.items() if there & set(pair) for name in pair}
    if missing := sorted(shapes.keys() - there - _optional(model, shapes)):
        raise DataError(
            f"The model in {directory} can't be loaded: {len(missing)} of its {len(shapes)} parameters "
            f"aren't in its weights, first {missing[0]}. Its config.json is another model's, or the "
            "checkpoint is not whole: get both again."
        )


def _optional(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """What a family says may be missing."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return {name for name in names if any(re.search(pattern, name) for pattern in patterns)}


class OriginalTensors:
    """The tensors of the checkpoint in `base`, computed from the weights of a model that was loaded from it
    and has changed since.

    value   a weight's name in the model → its value

    Raises StageError for a family with tensors that can't be made again.
    """

    def __init__(self, base: Path, value: Callable[[str], Tensor]) -> None:
        specs, self._model, self._value = stored_specs(base), meta_model(base), value
        names = map_names(self._model, specs)
        self.weight_of: dict[str, str] = {tensor: weight for weight, tensor in names.plain.items()}
        """tensor → the weight that it is, or that it is a part of"""
        self.weight_of |= {tensor: weight for weight, parts in names.made.items() for tensor in parts}
        self._plain = frozenset(names.plain.values())
        self._open: dict[str, Tensor] = {}
        self._model._weight_conversions = list(names.steps)
        for weight, parts in names.made.items():
            back = {
                name: tuple(part.shape)
                for name, part in self._parts(weight, self._model.state_dict()[weight]).items()
            }
            if back != {name: specs[name].shape for name in parts}:
                raise StageError(
                    f"{weight} is made of {len(parts)} tensors of the checkpoint, first {parts[0]}, and "
                    "can't be taken apart into them again."
                )
        if names.split:
            raise StageError(
                f"{min(names.split)} is a part of a larger tensor of the checkpoint: this family's layout "
                "can't be written yet."
            )

    def __getitem__(self, tensor: str) -> Tensor:
        """One tensor by its name in the checkpoint. Each is given once: of the experts of a layer, those
        not yet asked for are all that is kept.
        """
        weight = self.weight_of[tensor]
        if tensor in self._plain:
            return self._value(weight)
        if tensor not in self._open:
            self._open |= self._parts(weight, self._value(weight))
        return self._open.pop(tensor)

    def _parts(self, weight: str, value: Tensor) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = revert_weight_conversion(self._model, {weight: value})
        return parts
