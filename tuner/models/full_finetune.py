"""Full fine-tuning of a part of a model: which weights are trained, and the dtype of the frozen ones."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuner.errors import ConfigError
from tuner.models.load import load_model


def load_trainable(
    directory: Path,
    *,
    device: torch.device,
    compute: torch.dtype,
    rounded: torch.dtype,
    last_layers: int | None = None,
    freeze: Collection[str] = (),
) -> PreTrainedModel:
    """The model in a directory with fp32 master weights of what is trained, for matmuls in `compute` by
    autocast; in eval mode.

    Frozen linear layers and embeddings are held in `compute`, with the values that they have in `rounded`:
    half the memory, and matmuls get the same inputs. The whole model is then loaded on the CPU first, so
    that the GPU never holds it in fp32.

    Raises ConfigError when nothing is left to train, or the model has fewer layers.
    """
    if last_layers is None and not freeze:
        return load_model(directory, dtype=torch.float32, device=device)
    model = load_model(directory, dtype=torch.float32, device="cpu")
    choose_trainable(model, last_layers=last_layers, freeze=freeze)
    hold_frozen(model, compute, rounded)
    return model.to(device)


def choose_trainable(
    model: PreTrainedModel, *, last_layers: int | None = None, freeze: Collection[str] = ()
) -> None:
    """Set requires_grad on every parameter: all train but those that the two exclude.

    last_layers  train the last so many layers, and what comes after them: the final norm and the head
    freeze       "embeddings", "norms", "head": leave these as they are

    A head that is tied to the embedding is the embedding: either name freezes it, and so does `last_layers`,
    as it comes first too. Vision and audio towers are frozen with `last_layers`.
    Raises ConfigError when nothing is left to train, or the model has fewer layers.
    """
    head = model.get_output_embeddings()
    excluded: list[Iterable[nn.Parameter]] = []
    if "embeddings" in freeze:
        excluded.append(model.get_input_embeddings().parameters())
    if "head" in freeze and head is not None:
        excluded.append(head.parameters())
    if "norms" in freeze:
        excluded += [
            module.parameters(recurse=False)
            for module in model.modules()
            if "norm" in type(module).__name__.lower()
        ]
    out = {id(parameter) for parameters in excluded for parameter in parameters}
    chosen = None if last_layers is None else {id(parameter) for parameter in _late(model, last_layers)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in out and (chosen is None or id(parameter) in chosen))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"algo.freeze={list(freeze)} leaves nothing of this model to train: freeze less.")


def _late(model: PreTrainedModel, last_layers: int) -> list[nn.Parameter]:
    """The parameters of the last layers, and of what comes after them in the model's own order. Embeddings
    never come after.
    """
    decoder: Any = model.get_decoder()
    lists = [(name, module) for name, module in decoder.named_children() if isinstance(module, nn.ModuleList)]
    place, blocks = max(lists, key=lambda found: len(found[1]), default=("", ()))
    if last_layers > len(blocks):
        raise ConfigError(
            f"algo.last_layers={last_layers}, but this model has {len(blocks)} layers. Name fewer, or leave "
            "it out to train all weights."
        )
    children = [name for name, _ in decoder.named_children()]
    after = [getattr(decoder, name) for name in children[children.index(place) + 1 :]] if place else []
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and getattr(head, "weight", None) is not embedding.weight:
        after.append(head)
    parts = [
        *list(blocks)[len(blocks) - last_layers :],
        *(module for module in after if not isinstance(module, nn.Embedding)),
    ]
    return [parameter for part in parts for parameter in part.parameters()]


def hold_frozen(model: PreTrainedModel, compute: torch.dtype, rounded: torch.dtype) -> None:
    """Give the frozen linear layers and embeddings the values they have in `rounded`, and the dtype
    `compute`.

    What an embedding gives is in fp32 again, as the masters around it expect: only memory has changed. Norms
    are small, and stay.
    """
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)) or module.weight.requires_grad:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(rounded).to(compute)
        if isinstance(module, nn.Embedding) and compute != torch.float32:
            module.register_forward_hook(_widen)


def _widen(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
    return out.float()


def count_trainable(model: torch.nn.Module) -> int:
    """How many trainable parameters a model has."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
