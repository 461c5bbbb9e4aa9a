from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tuner.config.schema import Optim
from tuner.data.packs import Packs
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.train.batch import collate, count_targets
from tuner.train.engine import State, TorchEngine, trainable_parameters
from tuner.train.held_out import measure_batches
from tuner.train.loss import summed_loss
from tuner.train.noise import prepare_noise
from tuner.train.optimizers import build_optimizer, vocabulary_weights

OPTIMIZERS = ["adamw", "adamw_8bit", "adafactor", "muon"]


def engine(
    tiny: Path,
    adapter: str,
    optimizer: str = "adamw",
    *,
    dropout: float = 0.0,
    neftune: float | None = None,
    smoothing: float = 0.0,
    decay: float = 0.0,
) -> TorchEngine:
    model = load_model(tiny, dtype=torch.float32, device="cpu")
    if adapter == "lora":
        model = add_lora(model, r=4, alpha=8, dropout=dropout, targets="all-linear", seed=0)
        for name, p in model.named_parameters():  # B starts at zero, which would hide A's gradient
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
    noise = prepare_noise(model, seed=0, dropout=dropout, neftune=neftune)
    optim = Optim(name=optimizer, weight_decay=decay)  # type: ignore[arg-type]
    built = build_optimizer(
        trainable_parameters(model), optim, device=torch.device("cpu"), vocabulary=vocabulary_weights(model)
    )
    return TorchEngine(
        model.train(), built, loss=partial(summed_loss, label_smoothing=smoothing), noise=noise
    )


def copied(state: State) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in (state.weights | state.optimizer).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("size", [2, 7])
def test_micro_batches_give_the_same_gradient(tiny: Path, packs: Packs, adapter: str, size: int) -> None:
    rows, it = list(packs), engine(tiny, adapter)
    targets, gradients, losses = count_targets(rows), [], []
    for n in (1, size):
        losses.append(
            sum(
                it.forward_backward(
                    [collate(rows[i : i + n]) for i in range(0, len(rows), n)], targets
                ).tolist()
            )
        )
        gradients.append({name: gradient.clone() for name, gradient in it.gradients()})
        it.reset()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert gradients[0].keys() == it.named.keys()
    for name, one in gradients[0].items():
        assert (one - gradients[1][name]).norm() <= 1e-6 * one.norm(), name


@pytest.mark.parametrize("clip", [0.5, None])
def test_steps_are_those_of_plain_pytorch(tiny: Path, packs: Packs, clip: float | None) -> None:
    """Bit for bit: the norm, the clip and AdamW."""
    it, plain = engine(tiny, "none", decay=0.1), load_model(tiny, dtype=torch.float32, device="cpu").train()
    matrices, vectors = (
        [p for p in plain.parameters() if (p.ndim == 2) is wanted] for wanted in (True, False)
    )
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], fused=True
    )
    for step in range(3):
        batch, targets = collate([packs[step]]), count_targets([packs[step]])
        it.forward_backward([batch], targets)
        norm = it.step(1e-3 / (step + 1), clip).item()
        (summed_loss(plain, batch) / targets).backward()  # type: ignore[no-untyped-call]
        expected = torch.stack([p.grad.norm() for p in plain.parameters()]).norm().item()
        assert norm == pytest.approx(expected, rel=1e-6)
        assert norm > 0.5
        torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or float("inf"))
        for group in adamw.param_groups:
            group["lr"] = 1e-3 / (step + 1)
        adamw.step()
        adamw.zero_grad()
    assert equal(it.state().weights, dict(plain.named_parameters()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(tiny: Path, packs: Packs, bad: float) -> None:
    it = engine(tiny, "lora")
    batch, targets = collate([packs[0]]), count_targets([packs[0]])
    it.forward_backward([batch], targets)
    it.step(1e-3, 1.0)
    before = copied(it.state())
    it.forward_backward([batch], targets)
    next(gradient for _, gradient in it.gradients())[0, 0] = bad
    assert not it.step(1e-3, 1.0).isfinite()
    assert equal(before, copied(it.state()))
    assert not any(gradient.any() for _, gradient in it.gradients())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_after_what_is_not_finite_no_step_is_applied(
    tiny: Path, packs: Packs, what: str, asynchronous: bool, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "asynchronous", asynchronous)
    it, other = engine(tiny, "lora", optimizer), engine(tiny, "lora", optimizer)
    batch, targets = collate([packs[0]]), count_targets([packs[0]])
    for one in (it, other):
        one.forward_backward([batch], targets)
        assert one.step(1e-3, 1.0).isfinite()
    before = copied(it.state())
    if what == "loss":
        it.loss = lambda model, batch: summed_loss(model, batch) + torch.inf  # its gradient is finite
        assert it.forward_backward([batch], targets).isinf().all()
        it.loss = summed_loss
    else:
        it.forward_backward([batch], targets)
        next(gradient for _, gradient in it.gradients())[0, 0] = torch.inf
    norms = [it.step(1e-3, 1.0)]
    assert it.forward_backward([batch], targets).isfinite().all()
    norms.append(it.step(1e-3, 1.0))
    assert [norm.item() for norm in norms] == pytest.approx(
        [torch.inf if what == "gradient" else torch.nan, torch.nan], nan_ok=True
    )
    assert equal(before, copied(it.state()))
    it.load(other.state())
    for one in (it, other):
        one.forward_backward([batch], targets)
        assert one.step(1e-3, 1.0).isfinite()
    assert equal(copied(it.state()), copied(other.state()))
    assert not equal(before, copied(it.state()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_state_goes_through(tiny: Path, packs: Packs, adapter: str, optimizer: str) -> None:
    one, other = engine(tiny, adapter, optimizer), engine(tiny, adapter, optimizer)
    batch, targets = collate([packs[0]]), count_targets([packs[0]])
    losses = []
    for _ in range(2):
        losses += one.forward_backward([batch], targets).tolist()
        one.step(1e-3, 1.0)
    assert losses[1] < losses[0]
    other.load(one.state())
    for it in (one, other):
        it.forward_backward([batch], targets)
        it.step(1e-3, 1.0)
    assert equal(copied(one.state()), copied(other.state()))


def test_what_is_loaded_is_copied(tiny: Path, packs: Packs) -> None:
    one, other = engine(tiny, "none"), engine(tiny, "none")
    batch, targets = collate([packs[0]]), count_targets([packs[0]])
    one.forward_backward([batch], targets)
    one.step(1e-3, None)
    other.load(one.state())
    before = copied(one.state())
    other.forward_backward([batch], targets)
    other.step(1e-3, None)
    assert equal(before, copied(one.state()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reset_leaves_only_the_weights(tiny: Path, packs: Packs, optimizer: str) -> None:
    one, other = engine(tiny, "lora", optimizer), engine(tiny, "lora", optimizer)
    batch, targets = collate([packs[0]]), count_targets([packs[0]])
    one.forward_backward([batch], targets)
    one.step(0.0, 1.0)
    one.forward_backward([batch], targets)
    one.reset()
    for it in (one, other):
        it.forward_backward([batch], targets)
        it.step(1e-3, 1.0)
    assert equal(copied(one.state()), copied(other.state()))


def test_measuring_changes_nothing_drops_nothing_and_smooths_nothing(tiny: Path, packs: Packs) -> None:
    it, exact = engine(tiny, "lora", dropout=0.5, neftune=5.0, smoothing=0.1), engine(tiny, "lora")
    batches = [collate([packs[0], packs[1]]), collate([packs[2]])]
    before = copied(it.state())
    loss, targets = measure_batches(it, batches, summed_loss)
    assert targets == count_targets([packs[0], packs[1], packs[2]])
    assert loss == pytest.approx(sum(exact.forward_backward(batches, targets).tolist()), rel=1e-6)
    assert measure_batches(it, batches, summed_loss) == (loss, targets)
    assert it.model.training
    assert equal(before, copied(it.state()))
    assert not any(gradient.any() for _, gradient in it.gradients())


def test_training_smooths_labels(tiny: Path, packs: Packs) -> None:
    it, batch = engine(tiny, "none", smoothing=0.1), collate([packs[0]])
    (loss,) = it.forward_backward([batch], 1).tolist()
    logits_NV = it.model(input_ids=batch.ids_1N, position_ids=batch.positions_1N, use_cache=False).logits[0]
    expected = torch.nn.functional.cross_entropy(
        logits_NV[batch.keep_M], batch.targets_M, label_smoothing=0.1, reduction="sum"
    )
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("recompute", [False, True])
def test_noise_is_drawn_by_step_and_pack(tiny: Path, packs: Packs, recompute: bool) -> None:
    """Alone or in one row with others, in whatever order, and computed once or again for the backward
    pass.
    """
    it, twin = engine(tiny, "lora", dropout=0.3, neftune=5.0), engine(tiny, "lora", dropout=0.3, neftune=5.0)
    if recompute:
        base: Any = twin.model
        base.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    targets, found = count_targets([packs[0], packs[1]]), []
    rows = [([0], 4), ([1], 4)], [([1, 0], 4)], [([0], 5), ([1], 5)]
    for chosen, one in zip(rows, (it, twin, it), strict=True):
        batches = [
            collate([packs[i] for i in indices], indices=indices, step=step) for indices, step in chosen
        ]
        loss = sum(one.forward_backward(batches, targets).tolist())
        found.append((loss, torch.cat([gradient.flatten() for _, gradient in one.gradients()])))
        one.reset()
    (loss, gradient), (same, alike), (other, _) = found
    assert same == pytest.approx(loss, rel=1e-6)
    assert (alike - gradient).norm() <= 2e-6 * gradient.norm()
    assert abs(other - loss) > 1e-3 * loss


def test_a_frozen_part_is_neither_trained_nor_saved(tiny: Path, packs: Packs) -> None:
    model = load_model(tiny, dtype=torch.float32, device="cpu").train()
    model.model.embed_tokens.requires_grad_(False)
    frozen = model.model.embed_tokens.weight.clone()
    it = TorchEngine(
        model,
        build_optimizer(trainable_parameters(model), Optim(), device=torch.device("cpu")),
        loss=summed_loss,
    )
    it.forward_backward([collate([packs[0]])], count_targets([packs[0]]))
    it.step(1e-3, 1.0)
    assert torch.equal(frozen, model.model.embed_tokens.weight)
    assert "model.embed_tokens.weight" not in it.state().weights
    assert "model.norm.weight" in it.state().weights


def test_names(tiny: Path) -> None:
    assert (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        in engine(tiny, "lora").state().weights
    )
    full = engine(tiny, "none").state().weights
    assert "model.embed_tokens.weight" in full
    assert "lm_head.weight" not in full  # tied


def test_foreign_weights_are_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match="not this model's"):
        engine(tiny, "none").load(engine(tiny, "lora").state())
