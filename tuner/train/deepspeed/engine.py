"""DeepSpeed as an Engine: several processes, ZeRO 0 to 3, offload. The results are those of the torch engine.

DeepSpeed averages gradients over processes; a micro batch's loss is multiplied by their number first, so that
gradients add up. It divides by no number of micro batches, clips by the norm that it finds before it touches
a weight, and knows nothing of precision: what trains is fp32, and autocast is in the model's forward pass.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from tuner.config.schema import Optim
from tuner.train.batch import Batch
from tuner.train.deepspeed import shards
from tuner.train.deepspeed.initialize import start_deepspeed
from tuner.train.distributed import World
from tuner.train.engine import SavedTensors, State, noise_for, refuse_other_names, trainable_parameters
from tuner.train.loss import Loss
from tuner.train.noise import Noise
from tuner.train.optimizers import (
    build_optimizer,
    moments,
    reset_moments,
    restore_moments,
    set_lr,
    vocabulary_weights,
)


class ZeroEngine:
    """One of the processes of a run, on its own device."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        world: World,
        settings: Mapping[str, Any],
        optim: Optim,
        loss: Loss,
        lora_plus: float | None = None,
        autocast: torch.dtype | None = None,
        noise: Noise | None = None,
        timeout: float = 600.0,
    ) -> None:
        """
        model            in train mode, with requires_grad on what trains; the same in all processes, and the
                         engine's own from here on
        settings         DeepSpeed's JSON, as `tuner.train.deepspeed.settings` makes it
        optim            algo.optim
        timeout          seconds that processes wait for each other
        loss, lora_plus, autocast, noise    as for the torch engine

        Where the world has more than one process, torch.distributed must have been started. Raises
        ConfigError where DeepSpeed refuses the settings.
        """
        self.model, self.world, self.device = model, world, world.device
        self.loss, self.noise = loss, noise
        self.stage = int(settings["zero_optimization"]["stage"])
        self.named = trainable_parameters(model)
        self.keys = saved_names(model, self.named)
        self.shapes = {name: tuple(p.shape) for name, p in self.named.items()}
        home = torch.device("cpu") if "offload_optimizer" in settings["zero_optimization"] else world.device
        self.optimizer = build_optimizer(
            self.named, optim, lora_plus=lora_plus, device=home, vocabulary=vocabulary_weights(model)
        )
        if autocast:
            # Inside of the model's forward pass: DeepSpeed turns off, on GPUs, an autocast that is around its
            # own. With a cache, autocast would keep
            # a copy of each weight that ZeRO 3 gathers until the forward pass ends.
            model.forward = torch.autocast(world.device.type, dtype=autocast, cache_enabled=self.stage < 3)(
                model.forward
            )
            if self.stage == 3:
                gather_rounded(model, autocast)
        self.engine = start_deepspeed(model, self.optimizer, settings, world, timeout)
        self.held = shards.slices(self.engine.optimizer, self.named) if self.stage else {}
        self._reduced = False

    @property
    def asynchronous(self) -> bool:
        return False  # DeepSpeed itself waits for the norm, and goes on after one that is not finite

    def forward_backward(self, batches: Sequence[Batch], targets: int) -> torch.Tensor:
        if self._reduced:
            raise RuntimeError("gradients were read since the last step: step or reset before more are added")
        self.engine.set_gradient_accumulation_boundary(False)
        losses = []
        for batch in batches:
            with noise_for(self.noise, batch):
                loss = self.loss(self.engine, batch.to(self.device))
                self.engine.backward(loss / max(1, targets) * self.world.size)
            losses.append(loss.detach())
        return torch.stack(losses).float() if losses else torch.zeros(0, device=self.device)

    def _reduce(self) -> None:
        """Add up the gradients of all processes, each process's slice, if that was not done yet.
        DeepSpeed's boundary of an accumulation.
        """
        if self._reduced:
            return
        self.engine.set_gradient_accumulation_boundary(True)
        if self.stage < 2:
            self.engine.allreduce_gradients()
        else:  # they were reduced after each backward pass
            # where they are offloaded, those of tensors that had none would be what was there before
            if self.stage == 3:
                self.engine.optimizer._offload_boundary_param_ids.update(p.ds_id for p in self.named.values())  # type: ignore[attr-defined]
            self.engine.optimizer.finalize_gradient_accumulation_boundary()
        self._reduced = True

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_grad

        self._reduce()
        zero = self.engine.optimizer
        swapped = shards.swaps(zero)
        for name, p in self.named.items():
            yield name, shards.gradient(zero, p) if swapped else safe_get_full_grad(p).float()

    @contextmanager
    def evaluating(self) -> Iterator[torch.nn.Module]:
        self.engine.eval()
        try:
            with torch.no_grad():
                yield self.engine
        finally:
            self.engine.train()

    def step(self, lr: float, max_norm: float | None) -> torch.Tensor:
        self._reduce()
        set_lr(self.optimizer, lr)
        if self.stage:
            self.engine.optimizer.clip_grad = max_norm or 0.0
            self.engine.step()  # nothing but the gradients' end where the norm is not finite
            norm = float(self.engine.get_global_grad_norm())
            shards.clear_gradients(self.engine.optimizer)
        else:
            norm = torch.nn.utils.clip_grad_norm_(
                self.named.values(), max_norm if max_norm is not None else math.inf
            ).item()
            if math.isfinite(norm):
                self.engine.step()
            else:
                self.engine.zero_grad()
        self._reduced = False
        return torch.tensor(norm)

    def state(self) -> State:
        if not self.stage:
            if not self.world.first:
                return State(weights={}, optimizer={})
            return State(
                weights={self.keys[name]: p.data for name, p in self.named.items()},
                optimizer=moments(self.optimizer, self.named),
            )
        zero = self.engine.optimizer
        weights, optimizer, shapes = {}, {}, {}
        for name, values in shards.weights(zero, self.held):
            weights[f"{self.keys[name]}@{self.held[name].offset}"] = values
            shapes[self.keys[name]] = self.shapes[name]
        for name, key, values in shards.moments(zero, self.held):
            if values.ndim:
                optimizer[f"{name}/{key}@{self.held[name].offset}"] = values
                shapes[f"{name}/{key}"] = self.shapes[name]
            elif self.held[name].offset == 0:  # once, in the process that has the tensor's beginning
                optimizer[f"{name}/{key}"] = values
        return State(weights=weights, optimizer=optimizer, shapes=shapes)

    def load(self, saved: SavedTensors) -> None:
        refuse_other_names(saved.weights, self.keys.values())
        self._discard()
        if not self.stage:
            for name, p in self.named.items():
                p.data.copy_(saved.weights[self.keys[name]])
            restore_moments(self.optimizer, self.named, saved.optimizer)
            return
        shards.restore(self.engine.optimizer, self.named, self.held, self.keys, saved)

    def reset(self) -> None:
        self._discard()
        reset_moments(self.optimizer)
        if self.stage:
            shards.forget(self.engine.optimizer, self.held)

    def _discard(self) -> None:
        if self.stage:
            shards.discard_gradients(self.engine.optimizer)
        else:
            self.engine.zero_grad()
        self._reduced = False


def gather_rounded(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let ZeRO 3 send the weights of linear layers in the dtype in which autocast multiplies them: half the
    bytes and, since autocast would round them next, the same bits. A table of embeddings, which may be a head
    too, is read as it is. Gradients are added up in fp32 all the same.
    """
    tables = {
        id(p)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for p in module.parameters()
    }
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            for p in module.parameters(recurse=False):
                if id(p) not in tables and p.dtype == torch.float32:
                    # What DeepSpeed's own torch_autocast sets, which would add gradients up in bf16 as well.
                    p.comm_dtype = dtype  # type: ignore[attr-defined]


def saved_names(model: torch.nn.Module, named: Mapping[str, torch.nn.Parameter]) -> dict[str, str]:
    """Parameter's name → what its values are called in a saved step: PEFT's key of an adapter's tensor,
    else the same.
    """
    if not isinstance(model, PeftModel):
        return {name: name for name in named}
    owners = {p.data_ptr(): name for name, p in named.items()}
    # save_embedding_layers="auto" may ask the hub for the base model's vocabulary size.
    keys = {
        tensor.data_ptr(): key
        for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    if owners.keys() != keys.keys():
        strange = sorted(
            [keys[at] for at in keys.keys() - owners.keys()]
            + [owners[at] for at in owners.keys() - keys.keys()]
        )
        raise ValueError(f"what trains is not what PEFT saves: {strange[:4]} …")
    return {owners[at]: key for at, key in keys.items()}
