import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.reference import reference, row
from tuner.kernels.backend import Scoring
from tuner.kernels.sdpa import attend, window_mask


def test_window_mask() -> None:
    assert window_mask(3, 2, torch.device("cpu")).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("lengths", [(1,), (17,), (1, 1, 1), (5, 1, 33, 2), (64, 7)])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients(
    lengths: tuple[int, ...], heads: int, kv: int, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, sum(lengths), 16, dtype=dtype, requires_grad=True) for h in (heads, kv, kv))
    scoring = Scoring(scaling=0.3, window=window)
    out, expected = attend(q, k, v, row(lengths), scoring), reference(q, k, v, lengths, scoring)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    grad = torch.randn_like(out)
    found, wanted = (
        torch.autograd.grad(x, (q, k, v), g) for x, g in ((out, grad), (expected, grad.double()))
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_caps_and_sinks(window: int | None, softcap: float | None, sinks: bool) -> None:
    torch.manual_seed(0)
    lengths = (5, 1, 19)
    q, k, v = (torch.randn(1, h, sum(lengths), 16, requires_grad=True) for h in (6, 2, 2))
    scores = torch.randn(6, requires_grad=True) if sinks else None
    scoring = Scoring(scaling=0.5, window=window, softcap=softcap, sinks=scores)
    out, expected = attend(q, k, v, row(lengths), scoring), reference(q, k, v, lengths, scoring)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    inputs = [x for x in (q, k, v, scores) if x is not None]
    for a, b in zip(
        torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_document_does_not_see_its_neighbours() -> None:
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    out = attend(q, k, v, row((4, 5)), Scoring(scaling=8**-0.5))
    alone = scaled_dot_product_attention(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], is_causal=True).transpose(
        1, 2
    )
    assert torch.equal(out[:, 4:], alone)


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 64, 32, 8), torch.randn(1, 64, 32, 8), torch.ones(1, 64, 32, 8)
    for softcap in (None, 5.0):
        out = attend(q, k, v, row((20, 12)), Scoring(scaling=0.1, softcap=softcap, dropout=0.25))
        assert out.std() > 0.05
        assert out.mean().item() == pytest.approx(1.0, abs=0.02)
