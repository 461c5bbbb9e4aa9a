"""Which linear layers of a model get an adapter, and which are quantised: those of the language model,
without its head and its routers.
"""

import re
from collections.abc import Iterable, Iterator

import torch
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from tuner.errors import ConfigError
from tuner.models.stateful_layers import linears_read_by_mixers

ALL = "all-linear"
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""what families call the layer that chooses among experts, or weighs one"""

OF_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj"})
"""layers that PEFT takes for parts of experts, in every family whose experts transformers makes one tensor
of
"""


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The names of every linear layer of the language model but the head and the routers, in the model's
    order.

    Vision and audio towers, and the projectors from them, lie outside of it. Experts are no
    linear layers in transformers: those of a layer are one tensor of three dimensions. Nor are those that a
    mixer of Mamba's reads by itself.
    """
    head, direct = model.get_output_embeddings(), linears_read_by_mixers(model)
    inside = f"{_language(model)}."
    return [
        name
        for name, module in _modules(model)
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and f".{name}".startswith(inside)
        and name.rpartition(".")[2] not in ROUTERS
        and name not in direct
    ]


def fused_experts(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The language model's experts: its parameters of three dimensions that belong to no convolution."""
    modules = [module for module in model.get_decoder().modules() if not isinstance(module, _ConvNd)]
    return [
        parameter
        for module in modules
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 3
    ]


def _language(model: PreTrainedModel) -> str:
    """Where the language model is, with a dot in front; nothing for a model that is nothing else."""
    decoder = model.get_decoder()
    return next((f".{name}" for name, module in model.named_modules() if name and module is decoder), "")


def _modules(model: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Like named_modules, but without routers and what is in them."""
    for name, module in model.named_children():
        if "Router" not in type(module).__name__:
            yield prefix + name, module
            yield from _modules(module, f"{prefix}{name}.")


def target_modules(model: PreTrainedModel, targets: str | Iterable[str]) -> str | list[str]:
    """What PEFT gets as `target_modules`: names of modules, ends of names, or one regular expression for
    whole names.

    Names stay as they are, which keeps adapter_config.json readable; `all-linear` becomes the names of
    `linear_layers`, and PEFT shortens the list. Beside experts only attention is adapted: PEFT would take a
    dense or shared MLP's gate_proj for that of all experts, here and wherever it reads the adapter. In a
    multimodal model, the end of a name means the language model's modules, where it has such; a regular
    expression or a whole name means what it says.
    Raises ConfigError when something fits no module.
    """
    if targets == ALL:
        taken = OF_EXPERTS if fused_experts(model) else frozenset[str]()
        if found := [name for name in linear_layers(model) if name.rpartition(".")[2] not in taken]:
            return found
        raise ConfigError(
            "algo.targets=all-linear fits no module of this model: it has no linear layers that "
            "adapters are made for."
        )
    wanted = [targets] if isinstance(targets, str) else list(targets)
    every = [name for name, _ in model.named_modules() if name]
    patterns = {target: re.escape(target) if re.fullmatch(r"[\w.-]+", target) else None for target in wanted}
    fits: dict[str, list[str]] = {}
    for target, plain in patterns.items():
        try:
            fits[target] = [
                name for name in every if re.fullmatch(rf"(?:.*\.)?{plain}" if plain else target, name)
            ]
        except re.error as error:
            raise ConfigError(
                f"algo.targets={target} is neither a module's name nor a regular expression ({error})."
            ) from error
        if not fits[target]:
            raise ConfigError(
                f"algo.targets={target} fits no module of this model. Its linear layers are "
                f"{', '.join(_leaves(model))}"
            )
    if unseen := sorted({name for names in fits.values() for name in names} & linears_read_by_mixers(model)):
        raise ConfigError(
            f"algo.targets names {unseen[0]}, whose weight a mixer of Mamba's reads by itself, so an adapter "
            "there would do nothing: leave it out, or take algo.targets=all-linear, which does."
        )
    if not all(patterns.values()):
        return "|".join(
            rf"(?:.*\.)?{plain}" if plain else f"(?:{target})" for target, plain in patterns.items()
        )
    inside = f"{_language(model)}."
    narrow = {target: [n for n in names if f".{n}".startswith(inside)] for target, names in fits.items()}
    if all(narrow[target] in ([], names) for target, names in fits.items()):
        return wanted
    return sorted({name for target, names in fits.items() for name in narrow[target] or names})


def _leaves(model: PreTrainedModel) -> list[str]:
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
