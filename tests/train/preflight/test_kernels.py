"""The proof that kernels compute what the modules computed that they stand in for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from tests.train.preflight.test_numerics import CPU, engine_of, made, where
from tuner.data.packs import Pack
from tuner.errors import StageError
from tuner.train.distributed import single_process
from tuner.train.engine import TorchEngine
from tuner.train.preflight.kernels import prove_kernels


def in_one_weight(model: Any, share: float = 1.0) -> None:
    """Give each layer with an adapter a forward pass over W + share · s·B·A."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        product = self.scaling["default"] * self.lora_B["default"].weight @ self.lora_A["default"].weight
        return linear(x, self.base_layer.weight + share * product, self.base_layer.bias)

    for module in model.modules():
        if hasattr(module, "lora_A"):
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "unfused": kind})


def proved(engine: TorchEngine, packs: Sequence[Pack]) -> dict[str, float]:
    return prove_kernels(
        engine,
        engine.model,
        packs,
        single_process(CPU),
        micro_batch=2,
        rows=None,
        new_adapter=True,
        compute=torch.float32,
        where=where,
    )


def test_another_order_of_the_same_sums_holds_and_nothing_is_changed(
    tiny: Path, packs: Sequence[Pack]
) -> None:
    engine = engine_of(made(tiny))
    in_one_weight(engine.model)
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    kinds = [type(module) for module in engine.model.modules()]
    assert 0 < proved(engine, packs)["kernels"] < 1e-5  # two ways of computing were compared
    assert kinds == [type(module) for module in engine.model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in engine.model.state_dict().items())
    assert all(p.grad is None for p in engine.model.parameters())


def test_a_kernel_that_forgets_a_part_of_the_adapter_ends_the_run(tiny: Path, packs: Sequence[Pack]) -> None:
    """Though a new adapter is nothing: then the part of nothing is nothing."""
    engine = engine_of(made(tiny))
    in_one_weight(engine.model, share=0.9)
    with pytest.raises(StageError, match=r"has failed.*machine.kernels=plain.*most of it in .*lora"):
        proved(engine, packs)
