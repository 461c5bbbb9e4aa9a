"""An output head that is the embedding, and adapters that make two matrices of it.

Where a head is tied, one tensor of the checkpoint is both. An adapter on one of them (`lm_head` or the
embedding in algo.targets) leaves the other as it is, as PEFT computes it: from then on the head is a tensor
of its own, and config.json says so.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = re.compile(r"\.\d+\.")
"""in the name of a weight that belongs to a layer"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TiedHead:
    """A head and an embedding that are one matrix, by their weights' names in the model."""

    head: str
    embedding: str


def tied_head_of(model: "PreTrainedModel") -> TiedHead | None:
    """The tied pair of a model without adapters; None where head and embedding are two."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if head is None or embedding is None or getattr(head, "weight", None) is not embedding.weight:
        return None
    names = {module: name for name, module in model.named_modules()}
    return TiedHead(head=f"{names[head]}.weight", embedding=f"{names[embedding]}.weight")


def tied_head_in(directory: Path, weights: Iterable[str]) -> TiedHead | None:
    """The tied pair of the model in `directory`, where one of `weights` (names in the model) belongs to no
    layer: no class is built for others.
    """
    if all(INDEX.search(weight) for weight in weights):
        return None
    from tuner.models.checkpoint.meta_model import meta_model

    return tied_head_of(meta_model(directory))


def unties_head(tie: TiedHead | None, weights: Collection[str]) -> bool:
    """Whether adapters on these weights make two of what is tied."""
    return tie is not None and (tie.head in weights or tie.embedding in weights)


def untie_head(model: "PreTrainedModel") -> None:
    """Give the head a matrix of its own, of the same values."""
    head: Any = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
