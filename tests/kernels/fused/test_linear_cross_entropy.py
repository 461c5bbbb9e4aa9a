"""The head and its loss together, against fp64, and in models that do more with their logits."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.kernels.fused.conftest import ON_GPU
from tuner.kernels.apply import WaitingHead, apply, hidden_states, output_head
from tuner.kernels.fused import linear_cross_entropy as op

DEVICE = "cuda" if ON_GPU else "cpu"
SHAPES = [(1, 7, 16), (130, 1003, 64), (257, 5000, 32)] + ([(777, 92544, 512)] if ON_GPU else [])


def error(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true.double()).norm() / true.double().norm()).item()


@pytest.mark.parametrize(("rows", "vocabulary", "width"), SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("trains", [True, False])
def test_loss_and_gradients_are_those_of_fp64(
    rows: int, vocabulary: int, width: int, smoothing: float, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "CHUNK", 128 * 2 * vocabulary)  # several chunks
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=DEVICE).bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width, device=DEVICE) * 0.1).bfloat16().requires_grad_(trains)
    targets = torch.randint(0, vocabulary, (rows,), device=DEVICE)
    targets[2::3] = -100  # rows that only fill up
    loss = op.linear_cross_entropy(hidden, weight, targets, smoothing)
    (loss / rows).backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    true = cross_entropy(exact[0] @ exact[1].t(), targets, reduction="sum", label_smoothing=smoothing)
    (true / rows).backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - true.item()) < 0.01 * rows**0.5  # the logits are bf16
    assert hidden.grad is not None
    assert exact[0].grad is not None
    assert exact[1].grad is not None
    assert error(hidden.grad, exact[0].grad) < 0.01
    if trains:
        assert weight.grad is not None
        assert error(weight.grad, exact[1].grad) < 0.01
    else:
        assert weight.grad is None


def test_no_rows_are_a_loss_of_zero_with_a_gradient() -> None:
    hidden = torch.zeros(0, 16, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(9, 16, device=DEVICE).bfloat16()
    loss = op.linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64, device=DEVICE))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 96,
}


def test_a_head_waits_where_the_model_returns_what_it_does() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).bfloat16().to(DEVICE)
    apply(model)
    head, ids = output_head(model), torch.arange(8, device=DEVICE)[None]
    assert isinstance(head, WaitingHead)
    hidden = hidden_states(model, head, {"input_ids": ids, "logits_to_keep": torch.tensor([1, 5])})
    assert hidden is not None
    assert hidden.shape == (1, 2, 64)
    plain = model(input_ids=ids, logits_to_keep=torch.tensor([1, 5])).logits
    assert torch.equal(torch.nn.functional.linear(hidden, head.weight), plain)


@pytest.mark.parametrize(
    ("config", "kind"), [(Gemma2Config, Gemma2ForCausalLM), (GraniteConfig, GraniteForCausalLM)]
)
def test_a_head_whose_logits_are_capped_or_scaled_does_not_wait(config: type, kind: type) -> None:
    more = {"logits_scaling": 2.0} if config is GraniteConfig else {}
    model = kind(config(**SHAPE, **more)).bfloat16().to(DEVICE)
    apply(model)
    head, ids = output_head(model), torch.arange(8, device=DEVICE)[None]
    assert isinstance(head, WaitingHead)
    assert hidden_states(model, head, {"input_ids": ids}) is None
    assert type(head) is torch.nn.Linear
