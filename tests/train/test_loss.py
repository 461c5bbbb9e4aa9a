from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tuner.data.packs import Pack, Packs
from tuner.models.load import load_model
from tuner.train.batch import collate, empty_batch
from tuner.train.loss import logits_at, summed_loss


def documents(pack: Pack) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, labels) of each document, as plain transformers takes them."""
    labels = np.where(pack.trained, pack.ids, -100)
    borders = np.cumsum([0, *pack.lengths])
    return [
        (torch.tensor(pack.ids[a:b])[None].long(), torch.tensor(labels[a:b])[None].long())
        for a, b in pairwise(borders)
    ]


def test_packed_logits_are_the_documents_alone(tiny: Path, packs: Packs) -> None:
    packed = load_model(tiny, dtype=torch.float32, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    batch = collate(list(packs))
    with torch.no_grad():
        found_NV = packed(
            input_ids=batch.ids_1N, position_ids=batch.positions_1N, attention_mask=None, use_cache=False
        ).logits[0]
        alone_NV = torch.cat([plain(input_ids=ids).logits[0] for pack in packs for ids, _ in documents(pack)])
    assert (found_NV - alone_NV).abs().max() < 1e-5 * alone_NV.abs().max()


@pytest.mark.parametrize("together", [1, 3, 7])
def test_loss_is_that_of_plain_transformers(tiny: Path, packs: Packs, together: int) -> None:
    model = load_model(tiny, dtype=torch.float32, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    chosen = list(packs)[:together]
    with torch.no_grad():
        found = summed_loss(model, collate(chosen)).item()
        expected = sum(
            plain(input_ids=ids, labels=labels).loss.item() * int((labels[:, 1:] != -100).sum())
            for pack in chosen
            for ids, labels in documents(pack)
        )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_mixes_in_the_mean_over_the_vocabulary(
    tiny: Path, packs: Packs, smoothing: float
) -> None:
    model, batch = load_model(tiny, dtype=torch.float32, device="cpu"), collate(list(packs)[:2])
    with torch.no_grad():
        found, logits_MV = summed_loss(model, batch, smoothing).item(), logits_at(model, batch).double()
    minus_log_p = logits_MV.logsumexp(1, keepdim=True) - logits_MV
    target = minus_log_p.gather(1, batch.targets_M[:, None]).sum()
    assert found == pytest.approx(
        ((1 - smoothing) * target + smoothing * minus_log_p.mean(1).sum()).item(), rel=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("empty", [False, True])
def test_a_micro_batch_without_targets_gives_zero_loss_and_gradient(
    tiny: Path, packs: Packs, smoothing: float, empty: bool
) -> None:
    model = load_model(tiny, dtype=torch.float32, device="cpu")
    pack = packs[0]
    untrained = Pack(
        ids=pack.ids, trained=pack.trained & False, lengths=pack.lengths, files=pack.files, lines=pack.lines
    )
    loss = summed_loss(model, empty_batch() if empty else collate([untrained]), smoothing)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_forward_that_ignores_logits_to_keep(tiny: Path, packs: Packs) -> None:
    class Ignores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = load_model(tiny, dtype=torch.float32, device="cpu")

        def forward(self, **inputs: torch.Tensor) -> object:
            del inputs["logits_to_keep"]
            return self.inner(**inputs)

    model, batch = Ignores(), collate([packs[0]])
    assert summed_loss(model, batch).item() == pytest.approx(summed_loss(model.inner, batch).item(), rel=1e-6)
