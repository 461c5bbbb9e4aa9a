"""Where a nan or an infinity comes from: a tensor of the checkpoint, a trained weight, or the first layer
whose output has one.

Asked when a loss or a logit is not finite, not before: it reads the whole checkpoint.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.models.checkpoint.safetensors import FLOATS, Checkpoint, natural_key


def explain_nonfinite(
    model: torch.nn.Module,
    files: Sequence[Path],
    run: Callable[[], object],
    *,
    first: bool = True,
    share: Callable[[str | None], list[str | None]] = lambda found: [found],
) -> str:
    """One or two sentences on why `run`, a forward pass of `model`, gives what is not finite; nothing where
    it does not.

    files   the checkpoint that the base was loaded from
    first   whether this process reads them, of several that ask together
    share   what all of these have found
    """

    def any_of(found: str | None) -> str | None:
        return next((said for said in share(found) if said), None)

    if found := any_of(in_files(files) if first else None):
        return (
            f"The base's weights hold it: {found}. The file is damaged, or was so when it was published: get "
            "it again, or take another model. It is not a matter of the rows or of attention."
        )
    if name := any_of(in_weights(model)):
        return (
            f"It comes from {name}, a trained weight whose values are not finite any more: lower "
            "algo.optim.lr."
        )
    if name := any_of(in_layers(model, run)):
        return (
            f"All weights are finite, and the first output that is not is that of {name}: the activations "
            "overflow. Such a model needs another algo.precision, or is damaged."
        )
    return ""


def in_files(files: Iterable[Path]) -> str | None:
    """The first tensor of a checkpoint that holds a nan or an infinity, and in which file.

    Only tensors of floats are looked at, one in memory at a time.
    """
    for file in sorted(files):
        weights = Checkpoint([file])
        for name in sorted(weights.specs, key=natural_key):
            if weights.specs[name].dtype in FLOATS and (said := count_nonfinite(weights[name])):
                return f"{name} in {file.name} has {said}"
    return None


def in_weights(model: torch.nn.Module) -> str | None:
    """The first parameter that trains and is not finite. What others shard is not looked at."""
    return next(
        (
            name
            for name, p in model.named_parameters()
            if p.requires_grad and p.is_floating_point() and not is_finite(p)
        ),
        None,
    )


def in_layers(model: torch.nn.Module, run: Callable[[], object]) -> str | None:
    """The innermost module that is the first to give what is not finite while `run` computes, with what
    went into it.
    """
    first: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if first or all(map(is_finite, float_tensors(out))):
                return
            given = [tensor for tensor in float_tensors(args) if tensor.numel()]
            kind = type(module).__name__
            if not all(map(is_finite, given)):
                first.append(f"what {name} ({kind}) is given")
            elif given:
                first.append(
                    f"{name} ({kind}), into which go values up to "
                    f"{max(float(tensor.abs().max()) for tensor in given):.3g}"
                )
            else:
                first.append(f"{name} ({kind})")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in hooks:
            handle.remove()
    return first[0] if first else None


def count_nonfinite(tensor: Tensor) -> str | None:
    """How many of a tensor's values are not finite, in words; None where all are.

    >>> count_nonfinite(torch.tensor([1.0, float("nan"), float("inf"), float("nan")]))
    '3 values of 4 that are not finite (nan, inf)'
    """
    flat = tensor.reshape(-1)
    if is_finite(flat):
        return None
    odd = flat[~torch.isfinite(flat)]
    kinds = [name for name, there in (("nan", odd.isnan().any()), ("inf", odd.isinf().any())) if there]
    return (
        f"{odd.numel():,} value{'s' if odd.numel() > 1 else ''} of {flat.numel():,} that "
        f"{'are' if odd.numel() > 1 else 'is'} not finite ({', '.join(kinds)})"
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; integers always are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach()).all())


def float_tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of floats in what a module takes or gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from float_tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from float_tensors(part)
