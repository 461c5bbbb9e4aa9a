"""Fused ops in place of a model's own, by the type of its modules.

An op is one file in `fused` with its plain reference, and one line here. A module keeps its parameters, its
hooks and its class' name: only its forward pass is another, and what that can't do it hands back to the one
it had. machine.kernels=plain leaves all of them as they are.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tuner.errors import in_one_line


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """A fused op on modules of one kind."""

    name: str
    takes: Callable[[nn.Module], bool]
    """whether a module is of the kind that it is for"""
    trouble: Callable[[nn.Module], str | None]
    """why such a module keeps its own forward pass, if it does"""
    fused: Callable[[type[nn.Module]], type[nn.Module]]
    """its class with the op, in which `unfused` is the class that it was"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What was done to a model."""

    fused: Counter[str] = field(default_factory=Counter)
    """op → modules that have it"""
    aside: Counter[str] = field(default_factory=Counter)
    """why modules keep their own → how many"""

    def __str__(self) -> str:
        done = ", ".join(f"{name} in {count} modules" for name, count in self.fused.items()) or "none"
        left = ", ".join(f"{count} with {why}" for why, count in self.aside.items())
        return f"{done}{f'; as they were: {left}' if left else ''}"


def ops() -> tuple[Op, ...]:
    """All that there are. Imports Triton."""
    from tuner.kernels.fused import adapter_linear

    return (
        Op(
            name="adapter_linear",
            takes=lambda module: isinstance(module, LoraLayer),
            trouble=adapter_linear.trouble,
            fused=adapter_linear.fused,
        ),
    )


def trouble(device: torch.device) -> str | None:
    """Why Triton's kernels can't be used on this GPU, if so: one is built and run."""
    try:
        from tuner.kernels.fused.adapter_weight import adapter_weight

        zeros = torch.zeros(64, 64, dtype=torch.bfloat16, device=device)
        adapter_weight([zeros], zeros[:4], zeros[:, :4].contiguous(), 1.0, 64, 64, 0)
        torch.cuda.synchronize(device)
    except Exception as error:  # no Triton, no C compiler, no headers of Python, a /tmp that runs nothing …
        return in_one_line(error)
    return None


def apply(model: nn.Module) -> Applied:
    """Give the modules of a model on a GPU their fused forward passes, those that can have one, and its head
    one that can be asked to wait for the loss.
    """
    applied = Applied()
    for op in ops():
        classes: dict[type[nn.Module], type[nn.Module]] = {}  # one for all modules of a kind
        for module in [module for module in model.modules() if op.takes(module)]:
            if why := op.trouble(module):
                applied.aside[why] += 1
                continue
            kind = type(module)
            if kind not in classes:
                classes[kind] = op.fused(kind)
            module.__class__ = classes[kind]
            applied.fused[op.name] += 1
    if (
        type(head := output_head(model)) is nn.Linear
        and getattr(head, "bias", None) is None
        and not hasattr(head.weight, "ds_id")
    ):
        head.__class__ = WaitingHead
        applied.fused["linear_cross_entropy"] += 1
    return applied


def output_head(model: Any) -> Any:
    """The output head of a causal language model, with adapters around it or not; None where it has none."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """In here the modules of a model have the forward passes that they had before `apply`."""
    changed = [(module, type(module)) for module in model.modules() if hasattr(type(module), "unfused")]
    for module, kind in changed:
        module.__class__ = kind.unfused  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


class WaitingHead(nn.Linear):
    """An output head that can return the hidden states themselves, for the loss to multiply a part at a time.

    That is right only where the model returns what its head does, and neither scales nor caps it: see
    `hidden_states`.
    """

    unfused = nn.Linear
    waits = False
    last: Tensor | None = None
    """what it returned while it waited"""

    def forward(self, x: Tensor) -> Tensor:
        if not self.waits:
            return super().forward(x)
        self.last = x
        return x


@contextmanager
def waiting(head: WaitingHead) -> Iterator[None]:
    """In here the model's `logits` are the hidden states before its head."""
    head.waits = True
    try:
        yield
    finally:
        head.waits, head.last = False, None


def hidden_states(model: nn.Module, head: WaitingHead, inputs: dict[str, Any]) -> Tensor | None:
    """What `head` would be multiplied with, [1, M, D], by the model's own forward pass. None where the model
    does something to its logits afterwards: then the head has returned to be a plain one.
    """
    with waiting(head):
        found = model(**inputs).logits
        untouched = found is head.last
    if untouched:
        return found  # type: ignore[no-any-return]
    head.__class__ = nn.Linear  # type: ignore[assignment]
    return None
