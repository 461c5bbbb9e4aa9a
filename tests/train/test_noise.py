"""What is drawn belongs to a pack and a step, wherever and whenever it is computed."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tuner.data.packs import Packs
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.train.batch import Batch, collate
from tuner.train.loss import summed_loss
from tuner.train.noise import Dropout, EmbeddingNoise, Noise, document_lengths, prepare_noise

P = 0.25
GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
)


def model_of(
    tiny: Path, *, dropout: float = P, neftune: float | None = None, dora: bool = False, seed: int = 0
) -> tuple[nn.Module, Noise]:
    base = load_model(tiny, dtype=torch.float32, device="cpu")
    tuned = add_lora(
        base, r=4, alpha=8, dropout=dropout, targets="all-linear", seed=0, init="orthogonal", dora=dora
    )
    noise = prepare_noise(tuned, seed=seed, dropout=dropout, neftune=neftune)
    assert noise
    return tuned.train(), noise


def gradient(model: nn.Module, noise: Noise, batches: list[Batch], step: int = 3) -> torch.Tensor:
    model.zero_grad()
    for batch in batches:
        noise.enter(step, batch.packs)
        summed_loss(model, batch).backward()
        noise.leave()
    return torch.cat(
        [parameter.grad.flatten().clone() for parameter in model.parameters() if parameter.grad is not None]
    )


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dora", [False, True])
def test_the_gradient_is_the_same_in_every_micro_batch(tiny: Path, packs: Packs, dora: bool) -> None:
    model, noise = model_of(tiny, neftune=5.0, dora=dora)
    chosen = {index: packs[index] for index in (0, 4, 2, 6)}
    together = gradient(model, noise, [collate(list(chosen.values()), indices=list(chosen))])
    alone = gradient(
        model, noise, [collate([pack], indices=[index]) for index, pack in reversed(chosen.items())]
    )
    assert off(alone, together) < 1e-6
    assert off(gradient(model, noise, [collate(list(chosen.values()))]), together) > 0.05  # of other packs
    assert (
        off(gradient(model, noise, [collate(list(chosen.values()), indices=list(chosen))], step=4), together)
        > 0.05
    )


def test_it_is_the_seed_s_and_not_torch_s(tiny: Path, packs: Packs) -> None:
    batch = collate([packs[0]])
    first, again, other = (gradient(*model_of(tiny, neftune=5.0, seed=seed), [batch]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert off(other, first) > 0.05


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_recomputed_blocks_draw_the_same(tiny: Path, packs: Packs) -> None:
    model, noise = model_of(tiny)
    plain = gradient(model, noise, [collate([packs[0], packs[1]])])
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )
    assert torch.equal(gradient(model, noise, [collate([packs[0], packs[1]])]), plain)


def test_in_eval_mode_and_outside_of_a_row_nothing_is_drawn(tiny: Path, packs: Packs) -> None:
    batch = collate([packs[0]])
    model, noise = model_of(tiny, neftune=5.0)
    with torch.no_grad():
        outside = summed_loss(model, batch)
        noise.enter(0, batch.packs)
        drawn, measured = summed_loss(model, batch), summed_loss(model.eval(), batch)
    assert torch.equal(outside, measured)
    assert (drawn - measured).abs() > 0.001 * measured


def test_there_is_nothing_to_prepare_without_noise(tiny: Path) -> None:
    base = load_model(tiny, dtype=torch.float32, device="cpu")
    model = add_lora(base, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0)
    assert prepare_noise(model, seed=0, dropout=0.0, neftune=None) is None


def test_every_adapter_draws_its_own_and_nothing_of_peft_s_is_left(tiny: Path) -> None:
    model, _ = model_of(tiny)
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    found = [module for module in model.modules() if isinstance(module, Dropout)]
    assert len(found) == len({module.name for module in found}) == 14
    assert all(module.p == P and module.training for module in found)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("shape", [(1, 5000, 40), (5000, 40)])
def test_frequency_scale_and_gradient_of_dropout(shape: tuple[int, ...], device: str) -> None:
    noise = Noise(0)
    noise.enter(0, [(0, 2000), (1, 3000)])
    x = torch.full(shape, 3.0, requires_grad=True, device=device)
    out = Dropout(noise, P, "here")(x)
    assert set(out.unique().tolist()) == {0.0, 4.0}
    dropped = (out == 0).float().view(5000, 40)
    n = dropped.numel()
    assert abs(dropped.mean().item() - P) < 5 * (P * (1 - P) / n) ** 0.5
    # no row and no column stands out
    for means, count in ((dropped.mean(0), 5000), (dropped[:2000].mean(1), 40)):
        assert means.std().item() == pytest.approx((P * (1 - P) / count) ** 0.5, rel=0.4)
    assert (dropped[:2000] == dropped[2000:4000]).float().mean().item() == pytest.approx(
        P**2 + (1 - P) ** 2, abs=0.01
    )
    out.sum().backward()
    assert torch.equal(x.grad, out.detach() / 3)


def test_bf16_stays_bf16() -> None:
    noise = Noise(0)
    noise.enter(0, [(0, 6)])
    assert Dropout(noise, P, "here")(torch.ones(1, 6, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    embedding = nn.Embedding(8, 4, dtype=torch.bfloat16)
    embedded = EmbeddingNoise(noise, 5.0)
    embedding.register_forward_hook(embedded.add)
    embedded.see(embedding, (), {"position_ids": torch.arange(6)[None]})
    assert embedding(torch.arange(6)[None]).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_noise_on_the_embedding_is_uniform_and_bounded_by_each_document_s_length(device: str) -> None:
    noise, alpha, width = Noise(0), 5.0, 64
    embedding = nn.Embedding(2, width, device=device)
    embedded = EmbeddingNoise(noise, alpha)
    embedding.register_forward_hook(embedded.add)
    documents = (400, 25, 100)
    positions = torch.cat([torch.arange(n) for n in documents])[None].to(device)
    assert torch.equal(
        document_lengths(positions).cpu(),
        torch.repeat_interleave(torch.tensor(documents), torch.tensor(documents)),
    )
    ids = torch.zeros_like(positions)
    plain = embedding(ids)
    noise.enter(0, [(0, 425), (1, 100)])
    embedded.see(embedding, (), {"position_ids": positions})
    drawn = (embedding(ids) - plain)[0].detach()
    for n, part in zip(documents, drawn.split(documents), strict=True):
        bound = alpha / (n * width) ** 0.5  # arXiv:2310.05914, algorithm 1
        assert 0.98 * bound < part.abs().max() <= bound * (1 + 1e-4)
        assert part.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert part.norm().item() == pytest.approx(alpha / 3**0.5, rel=0.05)  # whatever the length


@pytest.mark.parametrize("packs", [(), ((0, 5),), ((0, 5), (1, 6))])
def test_a_row_of_other_packs_is_refused(packs: tuple[tuple[int, int], ...]) -> None:
    noise = Noise(0)
    noise.enter(0, packs)
    with pytest.raises(
        ValueError, match=rf"here sees 10 tokens, and the packs of the row have {sum(n for _, n in packs)}"
    ):
        Dropout(noise, P, "here")(torch.ones(1, 10, 4))


def test_noise_without_positions_is_refused() -> None:
    noise = Noise(0)
    embedding = nn.Embedding(8, 4)
    embedding.register_forward_hook(EmbeddingNoise(noise, 5.0).add)
    noise.enter(0, [(0, 6)])
    with pytest.raises(ValueError, match="needs the row's position_ids"):
        embedding(torch.arange(6)[None])


def test_a_checkpointed_dropout_gives_the_gradient_of_its_own_mask() -> None:
    noise = Noise(0)
    noise.enter(0, [(0, 50)])
    x = torch.rand(1, 50, 8, requires_grad=True)
    out = checkpoint(Dropout(noise, P, "here"), x, use_reentrant=False, preserve_rng_state=False)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
