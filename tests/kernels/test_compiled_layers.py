"""Compiled layers compute as they did, without a break in their graph and without compiling again."""

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
from tuner.train.batch import collate
from tuner.train.batch_shape import BatchShape
from tuner.train.loss import summed_loss

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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.11's compiler looks at it
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for an NVIDIA GPU")
@pytest.mark.parametrize("norms", [True, False], ids=["norms again", "all kept"])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_loss_and_gradients_of_compiled_layers(kind: str, norms: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    register_attention()
    config = AutoConfig.for_model(kind, **SHAPE)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="tuner").bfloat16().cuda().train()
    packs = [pack([40, 25, 60], 0), pack([100, 20], 1), pack([30] * 4, 2), pack([128], 3)]
    shape = BatchShape.of(packs, 128, 2)
    rows = [shape.fill(collate(packs[:2])).to("cuda"), shape.fill(collate(packs[2:])).to("cuda")]

    def run() -> list[tuple[float, torch.Tensor]]:
        found = []
        for row in rows:
            model.zero_grad()
            loss = summed_loss(model, row)
            loss.backward()
            grads = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
            found.append((loss.item(), grads))
        return found

    with using_backend("varlen"):
        plain = run()
        assert CompiledLayers(decoder_layers(model)).run(run, norms=norms) is None
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled = run()
            with uncompiled():
                again = run()
    for (loss, grads), (own, own_grads), (_, other_grads) in zip(plain, compiled, again, strict=True):
        assert own == pytest.approx(loss, rel=5e-3)
        assert (own_grads - grads).norm() < 0.05 * grads.norm()
        assert (other_grads - grads).norm() < 1e-3 * grads.norm()
