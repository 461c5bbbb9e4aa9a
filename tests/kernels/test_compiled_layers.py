"""Compiled layers compute as they did, without a break in their graph and without compiling again."""

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.train.test_batch_shape import pack
from tuner.kernels.attention import register_attention, using_backend
from tuner.kernels.compile_policy import LAYERS, compiling_pays
from tuner.kernels.compiled_layers import (
    CompiledLayers,
    cache_directory,
    decoder_layers,
    uncompiled,
)
from tuner.train.batch import Batch, collate
from tuner.train.batch_shape import BatchShape
from tuner.train.loss import summed_loss
from tuner.train.recompute import set_recompute

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


looks_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
"""which PyTorch's compiler does"""
KEPT = [(False, 0), (True, 0), (True, 2), (True, 3)]
KEPT_NAMES = ["all kept", "norms again", "two blocks again", "blocks again"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a forward and backward pass gave."""

    loss: float
    gradient: torch.Tensor
    kept: int
    """numbers that the backward pass read"""


def tiny(kind: str, attention: str = "tuner") -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    register_attention()
    config = AutoConfig.for_model(kind, **SHAPE)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def filled_rows() -> list[Batch]:
    packs = [pack([40, 25, 60], 0), pack([100, 20], 1), pack([30] * 4, 2), pack([128], 3)]
    shape = BatchShape.of(packs, 128, 2)
    return [shape.fill(collate(packs[:2])), shape.fill(collate(packs[2:]))]


def passes(model: Any, rows: list[Batch]) -> list[Pass]:
    found = []
    for row in rows:
        model.zero_grad()
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = summed_loss(model, row)
        loss.backward()
        gradient = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
        found.append(Pass(loss=loss.item(), gradient=gradient, kept=kept))
    return found


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_family_is_told_by_its_class_and_by_its_config(kind: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE))
    assert [type(layer).__name__ for layer in decoder_layers(model)] == [LAYERS[kind]] * 3


def test_compiling_pays_over_many_steps_that_take_long() -> None:
    assert compiling_pays(1000, 0.5)
    assert not compiling_pays(10, 0.5)
    assert not compiling_pays(1000, 0.01)


def test_what_is_compiled_is_its_users_alone(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_directory().stat().st_mode & 0o777 == 0o700


def test_a_cache_beyond_its_limit_is_emptied(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = cache_directory() / "triton" / "kernel"
    kernel.parent.mkdir()
    kernel.write_bytes(bytes(10))
    monkeypatch.setattr("tuner.kernels.compiled_layers.LIMIT", 10)
    assert (cache_directory() / "triton").exists()
    monkeypatch.setattr("tuner.kernels.compiled_layers.LIMIT", 9)
    assert not any(cache_directory().iterdir())


def test_layers_that_can_not_be_compiled_are_as_they_were() -> None:
    layer = torch.nn.Linear(2, 2)

    def fails() -> None:
        raise RuntimeError("no compiler\nat all")

    assert CompiledLayers([layer]).run(fails, norms=True) == "RuntimeError: no compiler"
    assert layer._compiled_call_impl is None


@looks_at_grad
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for an NVIDIA GPU")
@pytest.mark.parametrize(("norms", "blocks"), KEPT, ids=KEPT_NAMES)
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_loss_and_gradients_of_compiled_layers(kind: str, norms: bool, blocks: int) -> None:
    model = tiny(kind).bfloat16().cuda()
    rows = [row.to("cuda") for row in filled_rows()]
    with using_backend("varlen"):
        plain = passes(model, rows)
        layers = CompiledLayers(decoder_layers(model))
        assert layers.run(lambda: passes(model, rows), norms=norms, blocks=blocks) is None
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled = passes(model, rows)
            with uncompiled():
                again = passes(model, rows)
    for one, own, other in zip(plain, compiled, again, strict=True):
        assert own.loss == pytest.approx(one.loss, rel=5e-3)
        assert (own.gradient - one.gradient).norm() < 0.05 * one.gradient.norm()
        assert (other.gradient - one.gradient).norm() < 1e-3 * one.gradient.norm()


@looks_at_grad
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles for a CPU")
def test_the_less_compiled_layers_keep_the_more_they_compute_again() -> None:
    """On a CPU in fp32, where the gradient is the same but for rounding."""
    model, rows = tiny("llama", "sdpa"), filled_rows()
    kept = []
    (plain, *_) = passes(model, rows)
    for norms, blocks in KEPT:
        set_recompute(model, blocks)
        layers = CompiledLayers(decoder_layers(model))
        assert layers.run(lambda: passes(model, rows), norms=norms, blocks=blocks) is None
        with torch._dynamo.config.patch(error_on_recompile=True):
            (own, *_) = passes(model, rows)
        layers.release()
        assert [layer.gradient_checkpointing for layer in layers.layers] == [n < blocks for n in range(3)]
        assert own.loss == pytest.approx(plain.loss, rel=1e-6)
        assert (own.gradient - plain.gradient).norm() < 1e-5 * plain.gradient.norm()
        kept.append(own.kept)
        torch._dynamo.reset()
        set_recompute(model, 0)
    everything, without_norms, two_inputs, inputs = kept
    assert plain.kept > everything > without_norms > two_inputs > inputs
