"""The optimizers by name, and what they remember as named tensors.

Each group of parameters has a `scale`: its learning rate is that of the step times this.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer

from tuner.config.schema.optim import OPTIMIZERS, Optim, OptimizerName
from tuner.errors import ConfigError
from tuner.hardware.libraries import how_to_install

B = re.compile(r"\.lora_(embedding_)?B\.")
"""the second matrix of an adapter, in PEFT's names"""

TABLES = ("qmap1", "qmap2")
"""what bitsandbytes has beside the moments of each parameter: what 8 bits mean, the same for all and
constant
"""


def build_optimizer(
    named: Mapping[str, torch.nn.Parameter],
    optim: Optim,
    *,
    device: torch.device,
    lora_plus: float | None = None,
    vocabulary: Set[str] = frozenset(),
) -> Optimizer:
    """The optimizer of these parameters; nothing moves before `set_lr`. Matrices decay, norms and biases
    don't.

    lora_plus   how many times as fast B learns as A and all else (LoRA+, arXiv:2402.12354)
    vocabulary  the names of the weights of embeddings and head (`vocabulary_weights`)

    adamw             arXiv:1711.05101, fused
    adamw_8bit        its moments in 8 bits, in blocks of 256 (arXiv:2110.02861); embeddings (as there), the
                      head and what has less than 4,096 elements keep theirs in 32
    paged_adamw       its moments where a full GPU can page them out to the host's memory (arXiv:2305.14314,
                      section 3)
    paged_adamw_8bit  both
    adafactor         arXiv:1804.04235 without momentum and relative step: a matrix has row and column means
                      of its squared gradient. The root mean square of an update is lr at most, times that of
                      the weights where it is above 1. `betas` and `eps` play no part
    muon              momentum, orthogonalised (arXiv:2502.16982), for the matrices of the layers, an
                      adapter's A and B among them; AdamW for `vocabulary`, vectors, and experts that are one
                      tensor of three dimensions. A matrix's update is scaled by 0.2 sqrt(max(rows, columns)),
                      which gives it the root mean square of AdamW's: the same `lr` and `weight_decay` suit
                      both

    Raises ConfigError where bitsandbytes is not installed, or would have to page on the CPU.
    """
    require_library(optim.name, device)
    layers = {name: p for name, p in named.items() if name not in vocabulary}
    if optim.name == "muon":
        layers = {name: p for name, p in layers.items() if p.ndim == 2}
    apart = {name: p for name, p in named.items() if name not in layers}
    every, inner, outer = (
        parameter_groups(chosen, weight_decay=optim.weight_decay, lora_plus=lora_plus)
        for chosen in (named, layers, apart)
    )
    betas, eps, fused = optim.betas, optim.eps, device.type in ("cpu", "cuda")
    if optim.name == "adamw":
        return torch.optim.AdamW(every, lr=0.0, betas=betas, eps=eps, fused=fused)
    if optim.name == "adafactor":
        # A step is lr * max(eps[1], RMS(weights)): with a small eps[1] the B of an adapter, which begins at
        # zero, would hardly leave it. eps[0] bounds
        # the mean of the squared gradients from below: its default, 1.2e-7, is more than that is in a large
        # model. Its square must not be 0 in fp32.
        return torch.optim.Adafactor(every, lr=0.0, eps=(1e-18, 1.0))
    if optim.name == "muon":
        parts: list[Optimizer] = []
        if inner:
            parts.append(
                torch.optim.Muon(inner, lr=0.0, momentum=optim.momentum, adjust_lr_fn="match_rms_adamw")
            )
        if outer:
            parts.append(torch.optim.AdamW(outer, lr=0.0, betas=betas, eps=eps, fused=fused))
        return combine(parts)
    if optim.kind.bitsandbytes:
        from bitsandbytes.optim import AdamW

        paged, bits = optim.kind.unpaged is not None, 8 if optim.name.endswith("8bit") else 32
        sizes = [(every, 32)] if bits == 32 else [(inner, 8), (outer, 32)]
        return combine(
            [
                AdamW(found, lr=0.0, betas=betas, eps=eps, optim_bits=size, is_paged=paged)
                for found, size in sizes
                if found
            ]
        )
    raise ValueError(f"unknown optimizer {optim.name}")


def parameter_groups(
    named: Mapping[str, torch.nn.Parameter], *, weight_decay: float, lora_plus: float | None
) -> list[dict[str, Any]]:
    """These parameters by what sets them apart: decay, and the scale of the learning rate."""
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, p in named.items():
        decay = weight_decay if p.ndim >= 2 else 0.0
        scale = lora_plus if lora_plus is not None and B.search(name) else 1.0
        found.setdefault((decay, scale), []).append(p)
    return [
        {"params": params, "weight_decay": decay, "scale": scale} for (decay, scale), params in found.items()
    ]


def require_library(name: OptimizerName, device: torch.device) -> None:
    """Raise ConfigError where the optimizer called `name` can't run on `device`, ValueError for another
    name.
    """
    if (kind := OPTIMIZERS.get(name)) is None:
        raise ValueError(f"unknown optimizer {name}")
    if not kind.bitsandbytes:
        return
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"algo.optim.name={name} is computed by bitsandbytes, which is not installed here: "
            f"{how_to_install('bitsandbytes')}"
        )
    if kind.unpaged and device.type != "cuda":
        raise ConfigError(
            f"algo.optim.name={name} pages between a GPU and the host's memory, and this run computes on "
            f"the {device.type}. Set algo.optim.name={kind.unpaged}, which computes the "
            "same."
        )


def vocabulary_weights(model: torch.nn.Module) -> frozenset[str]:
    """The names of the parameters of embeddings and of the output head; adapters on them are not among
    these.
    """
    inside = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    inside += [
        module
        for module in (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        if module is not None
    ]
    found = {id(p) for module in inside for name, p in module.named_parameters() if "lora_" not in name}
    return frozenset(name for name, p in model.named_parameters() if id(p) in found)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Let the next step have this learning rate, times each group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether a step reads on the device, from the fp32 scalar `found_inf`, that it shall change nothing
    where that is 1: PyTorch's fused optimizers do, for its GradScaler.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


class CombinedOptimizer(Optimizer):
    """Optimizers that step together. Their groups are its groups and their state is its state: the same
    objects.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = tuple(parts)
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step(closure)


def combine(parts: Sequence[Optimizer]) -> Optimizer:
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def moments(optimizer: Optimizer, named: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """What the optimizer remembers, as `<parameter>/<moment>`: the tensors themselves, and numbers (a
    count of steps) as tensors without dimension.
    """
    return {
        f"{name}/{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, p in named.items()
        for key, value in optimizer.state.get(p, {}).items()
        if key not in TABLES
    }


def restore_moments(
    optimizer: Optimizer, named: Mapping[str, torch.nn.Parameter], saved: Mapping[str, torch.Tensor]
) -> None:
    """Let the optimizer remember what `moments` gave; the tensors are copied. Raises ValueError where they
    belong to other parameters.
    """
    reset_moments(optimizer)
    owners = {
        id(p): (part, group, number, index)
        for part, number, group in _groups(optimizer)
        for index, p in enumerate(group["params"])
    }
    for path, value in saved.items():
        name, _, key = path.rpartition("/")
        if name not in named:
            raise ValueError(f"the checkpoint's optimizer is of other parameters: {name} does not train here")
        p = named[name]
        part, group, number, index = owners[id(p)]
        if hasattr(part, "init_state"):  # bitsandbytes: it chooses where a moment lies, and in how many bits
            if not optimizer.state[p]:
                part.init_state(group, p, number, index)
                _wait(p.device)
            if isinstance(optimizer.state[p][key], torch.Tensor):
                optimizer.state[p][key].copy_(value)
            else:
                optimizer.state[p][key] = value.item()
        else:
            # PyTorch keeps a count of steps on the CPU unless a fused kernel reads it.
            there = p.device if key != "step" or group.get("fused") else torch.device("cpu")
            # out of the mapped file, which will be pruned
            optimizer.state[p][key] = value.to(there, copy=True)


def reset_moments(optimizer: Optimizer) -> None:
    """As if no step had been done. In place: memory that pages is never given back."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if not isinstance(value, torch.Tensor):
                state[key] = 0
            elif key not in TABLES:
                value.zero_()


def _groups(optimizer: Optimizer) -> Iterator[tuple[Any, int, dict[str, Any]]]:
    for part in optimizer.parts if isinstance(optimizer, CombinedOptimizer) else (optimizer,):
        for number, group in enumerate(part.param_groups):
            yield part, number, group


def _wait(device: torch.device) -> None:
    """Until the GPU has zeroed the new moments: those that page are written from the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
