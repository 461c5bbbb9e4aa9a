"""FlexAttention's masks on the processor, where it computes without a kernel and has no backward pass.
Kernels: test_backends.py.
"""

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from tests.kernels.reference import reference, row
from tuner.kernels import flex
from tuner.kernels.backend import Scoring

CASES = [
    ((5,), None),
    ((128,), None),
    ((300, 1, 77, 500), None),
    ((300, 1, 77, 500), 50),
    ((130, 126, 128), 130),
    ((1,) * 140, None),
    ((700,), 1),
]


@pytest.mark.parametrize(("lengths", "window"), CASES)
def test_blocks_are_those_that_are_seen(lengths: tuple[int, ...], window: int | None) -> None:
    n = sum(lengths)
    made = flex.block_mask(row(lengths), window)
    # evaluates the mask at every pair
    wanted = create_block_mask(made.mask_mod, None, None, n, n, device="cpu")
    assert torch.equal(made.to_dense(), wanted.to_dense())


def test_whole_blocks_are_seen_as_a_whole() -> None:
    draw = random.Random(3)
    for _ in range(30):
        lengths = [draw.choice((1, 7, 128, 200, 513)) for _ in range(draw.randrange(1, 6))]
        document = row(lengths)
        width = draw.choice((document.longest, 100, 129, 300))
        _, full = flex.blocks(
            torch.repeat_interleave(torch.tensor(document.borders[:-1]), torch.tensor(lengths)).numpy(), width
        )
        n = sum(lengths)
        first = torch.repeat_interleave(torch.tensor(document.borders[:-1]), torch.tensor(lengths))[:, None]
        q, k = torch.arange(n)[:, None], torch.arange(n)[None]
        seen = (k <= q) & (k >= first) & (q - k < width)
        for i in range(full.shape[0]):
            for j in range(full.shape[1]):
                whole = bool(seen[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128].all()) and j < i
                assert full[i, j] == whole, (lengths, width, i, j)


def test_a_mask_is_made_once_for_a_row_and_a_window() -> None:
    document = row((40, 30))
    assert flex.block_mask(document, None) is flex.block_mask(document, 40)
    assert flex.block_mask(document, None) is flex.block_mask(document, 9000)
    assert flex.block_mask(document, 5) is not flex.block_mask(document, 6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (8, 2)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 2.0), (40, 2.0)])
@torch.no_grad()
def test_forward(heads: int, kv: int, window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    lengths = (5, 1, 133, 2)
    q, k, v = (torch.randn(1, h, sum(lengths), 16) for h in (heads, kv, kv))
    scoring = Scoring(scaling=0.5, window=window, softcap=softcap)
    torch.testing.assert_close(
        flex.attend(q, k, v, row(lengths), scoring).double(),
        reference(q, k, v, lengths, scoring),
        atol=1e-5,
        rtol=1e-5,
    )
