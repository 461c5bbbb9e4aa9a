"""Rows that are filled to few shapes compute what they would alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuner.data.packs import Pack
from tuner.estimate.recompute import row_sizes
from tuner.kernels.attention import register_attention
from tuner.models.load import load_model
from tuner.train.batch import collate, empty_batch
from tuner.train.batch_shape import IGNORED, BatchShape
from tuner.train.loss import summed_loss


def pack(lengths: list[int], seed: int = 0) -> Pack:
    dice = np.random.default_rng(seed)
    tokens = sum(lengths)
    return Pack(
        ids=dice.integers(3, 60, tokens).astype(np.uint32),
        trained=dice.random(tokens) < 0.7,
        lengths=np.array(lengths, dtype=np.int32),
        files=np.zeros(len(lengths), dtype=np.int32),
        lines=np.arange(len(lengths), dtype=np.int32),
    )


packs_of = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=5)


@given(packs_of, st.integers(0, 30))
def test_a_filled_row_has_one_of_few_shapes(lengths: list[list[int]], spare: int) -> None:
    packs = [pack(each) for each in lengths]
    tokens = max(len(one.ids) for one in packs) + spare
    shape = BatchShape.of(packs, tokens, 5)
    plain = collate(packs)
    filled = shape.fill(plain)
    size = next(size for size in row_sizes(shape.micro_batch) if size >= len(packs))
    row = filled.ids_1N.shape[1]
    assert row == filled.positions_1N.shape[1] == filled.borders[-1] == size * tokens
    assert filled.offsets_D is not None
    assert len(filled.borders) <= len(filled.offsets_D)
    assert len(filled.offsets_D).bit_count() == 1
    # rows of one size have one shape, however many documents are in them
    others = [shape.fill(collate([one] * len(packs))) for one in packs]
    assert {len(other.offsets_D) for other in others} == {len(filled.offsets_D)}  # type: ignore[arg-type]
    assert filled.offsets_D.unique().tolist() == list(filled.borders)
    assert (filled.offsets_D.diff() <= filled.longest).all()
    # the row itself is as it was, and positions begin again at each border
    assert torch.equal(filled.ids_1N[:, : plain.ids_1N.shape[1]], plain.ids_1N)
    assert torch.equal(filled.keep_M, plain.keep_M)
    starts = (filled.positions_1N[0] == 0).nonzero().flatten().tolist()
    assert starts == list(filled.borders[:-1])


def test_an_empty_batch_is_filled_too() -> None:
    shape = BatchShape.of([pack([3, 4])], 8, 1)
    assert shape.fill(empty_batch()).ids_1N.shape == (1, 8)


@pytest.mark.parametrize("lengths", [[[5, 3], [7]], [[9, 2, 2]]])
def test_loss_and_gradients_are_those_of_the_row_alone(tiny_model, lengths) -> None:  # type: ignore[no-untyped-def]
    register_attention()
    model = load_model(tiny_model, dtype=torch.float32, device="cpu").train()
    packs = [pack(each, seed) for seed, each in enumerate(lengths)]
    shape, found = BatchShape.of(packs, 16, 2), []
    filled = replace(shape, targets=True).fill(collate(packs))
    assert len(filled.targets_M) % 8 == 0
    for batch in (collate(packs), shape.fill(collate(packs)), filled):
        model.zero_grad()
        loss = summed_loss(model, batch)
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.item(), grads))
    for loss_, grads in found[1:]:
        assert found[0][0] == pytest.approx(loss_, rel=1e-6)
        torch.testing.assert_close(found[0][1], grads, atol=1e-5, rtol=1e-4)


@given(st.integers(0, 40), st.integers(1, 9))
def test_targets_are_filled_to_quarters_of_the_row(trained: int, tokens: int) -> None:
    one = pack([tokens + 40])
    one = replace(one, trained=np.arange(tokens + 40) <= trained)
    shape = BatchShape.of([one], tokens + 40, 1, targets=True)
    filled = shape.fill(collate([one]))
    quarter = -(-(tokens + 40) // 4)
    assert len(filled.targets_M) == len(filled.keep_M)
    assert len(filled.targets_M) in {quarter, 2 * quarter, 3 * quarter, 4 * quarter}
    assert (filled.targets_M != IGNORED).sum() == trained
    assert (filled.targets_M[trained:] == IGNORED).all()
