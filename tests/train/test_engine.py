from pathlib import Path

import pytest
import torch

from tuner.data.tokens import Packs
from tuner.models.load import add_lora, load_model
from tuner.train.batch import collate, count_targets
from tuner.train.engine import TorchEngine


def engine(tiny: Path, adapter: str, weight_decay: float = 0.0) -> TorchEngine:
    model = load_model(tiny, dtype=torch.float32, device="cpu")
    if adapter == "lora":
        model = add_lora(model, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0)
        for name, p in model.named_parameters():  # B starts at zero, which would hide A's gradient
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
    return TorchEngine(model.train(), betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("size", [2, 7])
def test_micro_batches_give_the_same_gradient(tiny: Path, packs: Packs, adapter: str, size: int) -> None:
    rows, it = list(packs), engine(tiny, adapter)
    targets, gradients, losses = count_targets(rows), [], []
    for n in (1, size):
        losses.append(sum(it.forward_backward([collate(rows[i : i + n]) for i in range(0, len(rows), n)], targets)))
        gradients.append({name: p.grad.clone() for name, p in it.named.items()})
        it.optimizer.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, one in gradients[0].items():
        assert (one - gradients[1][name]).norm() <= 1e-6 * one.norm(), name


def test_clip_and_step(tiny: Path, packs: Packs) -> None:
    it = engine(tiny, "none")
    it.forward_backward([collate([packs[0]])], count_targets([packs[0]]))
    norm = it.clip(0.5)
    assert norm > 0.5
    assert it.clip(None) == pytest.approx(0.5, rel=1e-4)
    before = {name: p.clone() for name, p in it.named.items()}
    it.step(1e-3)
    assert all(p.grad is None for p in it.named.values())
    moved = max((p - before[name]).abs().max().item() for name, p in it.named.items())
    assert moved == pytest.approx(1e-3, rel=1e-2)  # Adam's first step is lr * sign(g)


def test_only_matrices_decay(tiny: Path) -> None:
    groups = engine(tiny, "none", weight_decay=0.1).optimizer.param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.1, {2}), (0.0, {1})]


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_state_goes_through(tiny: Path, packs: Packs, adapter: str) -> None:
    one, other = engine(tiny, adapter), engine(tiny, adapter)
    batch, targets = collate([packs[0]]), count_targets([packs[0]])
    for _ in range(2):
        one.forward_backward([batch], targets)
        one.step(1e-3)
    other.load(one.state())
    for it in (one, other):
        it.forward_backward([batch], targets)
        it.step(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(one.state().weights.values(), other.state().weights.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.state().optimizer.values(), other.state().optimizer.values(), strict=True))


def test_names(tiny: Path) -> None:
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in engine(tiny, "lora").state().weights
    full = engine(tiny, "none").state().weights
    assert "model.embed_tokens.weight" in full
    assert "lm_head.weight" not in full  # tied


def test_foreign_weights_are_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match="not this model's"):
        engine(tiny, "none").load(engine(tiny, "lora").state())
