"""Passes that are captured as CUDA graphs give what the same passes give, on rows that they have not seen."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.kernels.test_compiled_layers import SHAPE
from tests.train.test_batch_shape import pack
from tuner.kernels.attention import register_attention, using_backend
from tuner.kernels.compile_policy import capturing_pays as pays
from tuner.train.batch import Batch, collate
from tuner.train.batch_shape import BatchShape
from tuner.train.cuda_graph import CapturedGradients
from tuner.train.loss import summed_loss

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs")


def test_capturing_pays_where_the_host_is_slower_than_the_gpu() -> None:
    assert pays(24, 0.05)
    assert not pays(24, 0.5)
    assert not pays(24, 0.0)  # nobody knows
    assert not pays(0, 0.05)  # of another family


@pytest.mark.gpu
@GPU
def test_losses_and_gradients_of_rows_that_were_not_captured() -> None:
    torch.manual_seed(0)
    register_attention()
    config = AutoConfig.for_model("llama", **SHAPE)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="tuner").bfloat16().cuda().train()
    packs = [pack([40, 25, 60], 0), pack([100, 20], 1), pack([30] * 4, 2), pack([128], 3), pack([9] * 9, 4)]
    shape = BatchShape.of(packs, 128, 2, targets=True)
    rows = [
        shape.fill(collate(packs[begin : begin + size])) for begin, size in ((0, 2), (2, 2), (3, 2), (4, 1))
    ]

    def gradients() -> torch.Tensor:
        return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    def plain(row: Batch) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = summed_loss(model, row.to("cuda"))
        (loss / 7).backward()
        value, found = loss.item(), gradients()
        del loss
        return value, found

    with using_backend("varlen"):
        wanted = [plain(row) for row in rows]
        model.zero_grad()
        captured = CapturedGradients(
            lambda batch: summed_loss(model, batch), list(model.parameters()), torch.device("cuda")
        )
        captured.warm_up(rows[:1])
        for row, (loss, grads) in [*zip(rows, wanted, strict=True), (rows[0], wanted[0])]:
            captured.forget()
            assert captured.add(row, 7).item() == pytest.approx(loss, rel=1e-3)
            assert (gradients() - grads).norm() < 0.02 * grads.norm()
        captured.forget()
        for row in rows:  # they add up
            captured.add(row, 7)
        total = sum(grads for _, grads in wanted)
        assert (gradients() - total).norm() < 0.02 * total.norm()
    shapes = {(row.ids_1N.shape, row.keep_M.shape, row.offsets_D.shape) for row in rows}  # type: ignore[union-attr]
    assert len(captured._graphs) == len(shapes)
