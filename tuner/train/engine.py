"""What the loop needs from whatever computes: gradients of micro batches, a clip, an optimizer step, and
the state to save.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch.optim import Optimizer

from tuner.kernels.compiled_layers import uncompiled, why_not
from tuner.train.batch import Batch
from tuner.train.cuda_graph import CapturedGradients
from tuner.train.loss import Loss
from tuner.train.noise import Noise
from tuner.train.optimizers import moments, reset_moments, restore_moments, set_lr, skips_on_device


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a step leaves behind in this process, by name; safetensors holds it.

    Where processes shard it, each has fragments of the flattened tensors: 1-D, under `name@offset`, with the
    whole shape in `shapes`.
    """

    weights: dict[str, torch.Tensor]
    """what trains, fp32: adapters under PEFT's own keys, or the whole model under its parameters' names"""
    optimizer: dict[str, torch.Tensor]
    """`<parameter>/<moment>`"""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """of the tensors that are here in fragments"""


class SavedTensors(Protocol):
    """A saved step, read a tensor at a time, whole, whatever the processes were that saved it."""

    @property
    def weights(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def optimizer(self) -> Mapping[str, torch.Tensor]: ...


class Engine(Protocol):
    """One optimizer over one model. `forward_backward` adds up gradients until `step` applies and forgets
    them.

    With several processes every method is called in all of them, in the same order and, for a list of
    batches, with as many of them.
    """

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    @property
    def asynchronous(self) -> bool:
        """Whether the host may read a step's losses and norm after it has launched the next one: from a step
        that is not finite on, none changes the weights until `load` or `reset`.
        """

    def forward_backward(self, batches: Sequence[Batch], targets: int) -> torch.Tensor:
        """Add the gradient of (summed loss / targets) of this process's micro batches, which lie on the
        CPU; returns their summed losses, in nats: fp32 [micro batches]. Whoever reads them waits for the
        device.

        `targets` is the number of all processes together, so that the gradients of the processes add up to
        that of the whole step.
        """

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The gradients so far, summed over all processes, whole, in fp32: (parameter's name, tensor)."""

    def step(self, lr: float, max_norm: float | None) -> torch.Tensor:
        """Scale the gradients down to this 2-norm, apply them with this learning rate, and forget them;
        returns the norm that they had: fp32 []. Whoever reads it waits for the device.

        Where the norm is not finite, nothing is applied.
        """

    def evaluating(self) -> AbstractContextManager[torch.nn.Module]:
        """While entered, the model to compute with, in eval mode and without gradients, under the autocast of
        training. Changes nothing.
        """

    def state(self) -> State:
        """The tensors as they are now (not copies)."""

    def load(self, saved: SavedTensors) -> None:
        """Go on from a saved step; its tensors are copied."""

    def reset(self) -> None:
        """Forget gradients and the optimizer's state, as if no step had been done; the weights stay."""


class TorchEngine:
    """One process, on the device where the model is."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        *,
        loss: Loss,
        autocast: torch.dtype | None = None,
        noise: Noise | None = None,
    ) -> None:
        """
        model      in train mode, with requires_grad on what trains
        optimizer  of the trainable parameters, as `optimizers.build_optimizer` makes it
        loss       whose gradient is taken
        autocast   the dtype of matmuls on fp32 weights
        noise      dropout and the like, keyed by step and rows
        """
        self.model, self.optimizer = model, optimizer
        self.device = next(model.parameters()).device
        self.loss, self.autocast, self.noise = loss, autocast, noise
        self.named = trainable_parameters(model)
        self.halted = torch.zeros((), device=self.device)
        """fp32 []: 0; from a loss or norm on that is not finite 1, and then nothing is applied any more"""
        self._captured: CapturedGradients | None = None

    @property
    def asynchronous(self) -> bool:
        return self.device.type == "cuda"

    def forward_backward(self, batches: Sequence[Batch], targets: int) -> torch.Tensor:
        losses: list[torch.Tensor] = []
        for batch in batches:
            if self._captured is not None:
                losses.append(self._captured.add(batch, targets))
                continue
            with noise_for(self.noise, batch):
                loss = self._loss_of(batch.to(self.device))
                (loss / max(1, targets)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        found = torch.stack(losses).float() if losses else torch.zeros(0, device=self.device)
        self._halt_unless_finite(found)
        return found

    def _halt_unless_finite(self, values: torch.Tensor) -> None:
        self.halted.logical_or_(~values.isfinite().all())  # on the device: the host does not wait

    def capture(self, batches: Sequence[Batch]) -> str | None:
        """From now on compute passes over rows as CUDA graphs, which are captured for these batches and for
        each shape that comes. The gradients so far are forgotten. Why that can't be done, if so.
        """
        self.optimizer.zero_grad(set_to_none=True)
        captured = CapturedGradients(self._loss_of, [*self.named.values()], self.device)
        if why := why_not(lambda: captured.warm_up(batches)):
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._captured = captured
        return why

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        with self._autocast():
            return self.loss(self.model, batch)

    def _forget_gradients(self) -> None:
        if self._captured is not None:
            self._captured.forget()
        else:
            self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, p in self.named.items():
            yield name, torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()

    @contextmanager
    def evaluating(self) -> Iterator[torch.nn.Module]:
        self.model.eval()
        try:
            with torch.no_grad(), self._autocast(), uncompiled():
                yield self.model
        finally:
            self.model.train()

    def step(self, lr: float, max_norm: float | None) -> torch.Tensor:
        """As the protocol says. A norm that is finite says that the step was applied: of one that was not,
        for its losses or for what came before it, it is nan.
        """
        norm = torch.nn.utils.clip_grad_norm_(
            self.named.values(), max_norm if max_norm is not None else float("inf")
        ).to(self.halted)  # without any gradient it is a zero on the CPU
        self._halt_unless_finite(norm)
        set_lr(self.optimizer, lr)
        if self.asynchronous and skips_on_device(self.optimizer):
            self.optimizer.found_inf = self.halted  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not self.halted.item():  # waits for the device
            self.optimizer.step()
        self._forget_gradients()
        return norm.where((self.halted == 0) | ~norm.isfinite(), torch.nan)

    def state(self) -> State:
        return State(weights=_weights(self.model, self.named), optimizer=moments(self.optimizer, self.named))

    def load(self, saved: SavedTensors) -> None:
        _load_weights(self.model, self.named, saved.weights)
        restore_moments(self.optimizer, self.named, saved.optimizer)
        self.halted.zero_()

    def reset(self) -> None:
        self.halted.zero_()
        self._forget_gradients()
        reset_moments(self.optimizer)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def noise_for(noise: Noise | None, batch: Batch) -> Iterator[None]:
    """Around the forward pass on a training batch and its backward pass, which may compute parts of the
    forward pass again.
    """
    if noise is None:
        yield
        return
    noise.enter(batch.step, batch.packs)
    try:
        yield
    finally:
        noise.leave()


def refuse_other_names(saved: Iterable[str], own: Iterable[str]) -> None:
    """Raise ValueError where the saved tensors are not called as this model's."""
    if strange := set(saved) ^ set(own):
        raise ValueError(f"the checkpoint's tensors are not this model's: {sorted(strange)[:4]} …")


def _weights(model: torch.nn.Module, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # save_embedding_layers="auto" may ask the hub for the base model's vocabulary size.
    if isinstance(model, PeftModel):
        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    return {name: p.data for name, p in named.items()}


def _load_weights(
    model: torch.nn.Module, named: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> None:
    expected = _weights(model, named)
    refuse_other_names(weights, expected)
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, dict(weights))
        return
    for name, value in weights.items():
        named[name].data.copy_(value)
