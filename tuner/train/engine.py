"""What the loop needs from whatever computes: gradients of micro batches, a clip, an optimizer step, and the state to save."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from tuner.train.batch import Batch
from tuner.train.objective import summed_loss


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a step leaves behind, by name; safetensors holds it."""

    weights: dict[str, torch.Tensor]
    """what trains, fp32: adapters under PEFT's own keys, or the whole model under its parameters' names"""
    optimizer: dict[str, torch.Tensor]
    """`<parameter>/<moment>`"""


class Engine(Protocol):
    """One optimizer over one model. `forward_backward` adds up gradients until `step` applies and forgets them."""

    def forward_backward(self, batches: Iterable[Batch], targets: int) -> list[float]:
        """Add the gradient of (summed loss / targets) of each micro batch; returns the summed losses, in nats."""

    def clip(self, max_norm: float | None) -> float:
        """Scale the gradients down to this 2-norm, or leave them; returns the norm they had."""

    def step(self, lr: float) -> None:
        """Apply the gradients with this learning rate, and forget them."""

    def measure(self, batches: Iterable[Batch]) -> float:
        """The loss per target over all batches together, in nats, without dropout. Changes nothing."""

    def state(self) -> State:
        """The tensors as they are now (not copies)."""

    def load(self, state: State) -> None:
        """Go on from a saved state; its tensors are copied."""


class TorchEngine:
    """AdamW (arXiv:1711.05101) in this process, on the device where the model is."""

    def __init__(
        self, model: torch.nn.Module, *, betas: tuple[float, float], eps: float, weight_decay: float, autocast: torch.dtype | None = None
    ) -> None:
        """`model` is in train mode, with requires_grad on what trains; `autocast` is the dtype of matrix products on fp32 weights."""
        self.model = model
        self.device = next(model.parameters()).device
        self.autocast = autocast
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = [
            {"params": [p for p in self.named.values() if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.named.values() if p.ndim < 2], "weight_decay": 0.0},  # norms and biases don't decay
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=self.device.type in ("cpu", "cuda"))

    def forward_backward(self, batches: Iterable[Batch], targets: int) -> list[float]:
        losses = []
        for batch in batches:
            loss = self._loss(batch)
            (loss / max(1, targets)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).tolist()  # one wait for the device a step

    def _loss(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            return summed_loss(self.model, batch)

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> float:
        self.model.eval()
        parts = [(self._loss(batch).item(), len(batch.targets_M)) for batch in batches]
        self.model.train()
        return sum(loss for loss, _ in parts) / max(1, sum(targets for _, targets in parts))

    def clip(self, max_norm: float | None) -> float:
        return torch.nn.utils.clip_grad_norm_(self.named.values(), max_norm if max_norm is not None else float("inf")).item()

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> State:
        moments = {f"{name}/{key}": value for name, p in self.named.items() for key, value in self.optimizer.state[p].items()}
        return State(weights=_weights(self.model, self.named), optimizer=moments)

    def load(self, state: State) -> None:
        _load_weights(self.model, self.named, state.weights)
        for path, value in state.optimizer.items():
            name, _, key = path.rpartition("/")
            self.optimizer.state[self.named[name]][key] = value.to(self.device, copy=True)  # out of the mapped file, which will be pruned


def _weights(model: torch.nn.Module, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # save_embedding_layers="auto" may ask the hub for the base model's vocabulary size.
    if isinstance(model, PeftModel):
        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    return {name: p.data for name, p in named.items()}


def _load_weights(model: torch.nn.Module, named: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    expected = _weights(model, named)
    if expected.keys() != weights.keys():
        raise ValueError(f"the checkpoint's tensors are not this model's: {sorted(expected.keys() ^ weights.keys())[:4]} …")
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, dict(weights))
        return
    for name, value in weights.items():
        named[name].data.copy_(value)
