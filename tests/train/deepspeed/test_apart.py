"""A model that carries a state from token to token trains one document a row: the loss and the gradient
are those of the documents alone.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests.models.hybrids import CONFIGS, hybrid
from tuner.config.schema import Optim
from tuner.data.packs import Pack
from tuner.errors import StageError
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.models.stateful_layers import carried_state
from tuner.train import optimizers
from tuner.train.batch import SingleDocuments, collate, count_targets, micro_batches, split_documents
from tuner.train.distributed import World
from tuner.train.engine import TorchEngine, trainable_parameters
from tuner.train.held_out import held_out_loss
from tuner.train.loss import summed_loss
from tuner.train.monitor.anomalies import micro_batch_origins
from tuner.train.preflight.numerics import prove


def some(seed: int, lengths: list[list[int]]) -> list[Pack]:
    """Packs of documents of these lengths; all but the first two tokens of each are trained, of the
    shortest but one.
    """
    draw = np.random.default_rng(seed)

    def pack(index: int, ends: list[int]) -> Pack:
        lines = np.arange(len(ends), dtype=np.int32) + 10 * index
        trained = np.concatenate([np.arange(n) >= min(2, n - 1) for n in ends])
        files = np.zeros(len(ends), dtype=np.int32)
        return Pack(
            ids=draw.integers(3, 60, sum(ends)).astype(np.int32),
            trained=trained,
            lengths=np.array(ends, dtype=np.int32),
            files=files,
            lines=lines,
        )

    return [pack(index, ends) for index, ends in enumerate(lengths)]


def test_documents_are_packs_of_their_own() -> None:
    packs = some(0, [[4, 2, 3], [5], [2, 2]])
    rows = SingleDocuments(packs)
    assert len(rows) == 6
    assert [len(row.ids) for row in rows] == [4, 2, 3, 5, 2, 2]
    assert [rows[i].ids.tolist() for i in range(6)] == [row.ids.tolist() for row in rows]
    assert (
        np.concatenate([row.ids for row in rows]).tolist()
        == np.concatenate([pack.ids for pack in packs]).tolist()
    )
    assert [(row.files.tolist(), row.lines.tolist()) for row in split_documents(packs[0])] == [
        ([f], [n]) for f, n in zip(packs[0].files, packs[0].lines, strict=True)
    ]
    assert count_targets(list(rows)) == count_targets(packs)
    with pytest.raises(IndexError):
        rows[6]
    assert len(SingleDocuments([])) == 0


def test_each_is_a_micro_batch_and_processes_keep_pace() -> None:
    rows = list(SingleDocuments(some(1, [[4, 2, 3], [5], [2, 2]])))
    worlds = [World(rank=rank, size=4, device=torch.device("cpu")) for rank in range(4)]
    batches = [micro_batches(rows, 1, world, step=3) for world in worlds]
    assert {len(own) for own in batches} == {2}
    shapes = [[batch.ids_1N.shape[1] for batch in own] for own in batches]
    assert shapes == [[4, 2], [2, 2], [3, 2], [5, 2]]  # the last two of processes 2 and 3 are empty
    assert all(len(batch.borders) == 2 for own in batches for batch in own)


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PeftModel:
    AutoModelForCausalLM.from_config(hybrid(request.param)).save_pretrained(tmp_path)
    tuned = add_lora(
        load_model(tmp_path, dtype=torch.float32, device="cpu"),
        r=2,
        alpha=4,
        dropout=0.0,
        targets="all-linear",
        seed=0,
    )
    draw = torch.Generator().manual_seed(1)
    for name, p in tuned.named_parameters():
        if ".lora_B" in name:
            p.data = torch.randn(p.shape, generator=draw) * 0.1
    return tuned.train()


@pytest.mark.filterwarnings("ignore:.*falling back")
def test_the_gradient_is_that_of_the_documents_alone(model: PeftModel) -> None:
    packs = some(2, [[9, 5, 14], [7, 12]])
    named = trainable_parameters(model)
    engine = TorchEngine(
        model, optimizers.build_optimizer(named, Optim(), device=torch.device("cpu")), loss=summed_loss
    )
    targets = count_targets(packs)
    losses = engine.forward_backward(
        micro_batches(
            list(SingleDocuments(packs)), 1, World(rank=0, size=1, device=torch.device("cpu")), step=0
        ),
        targets,
    ).tolist()
    found = dict(engine.gradients())
    engine.reset()
    # as transformers computes them, without the seam, without positions, each document in a call of its own
    model.get_base_model().set_attn_implementation("eager")
    expected = []
    for pack in packs:
        for row in split_documents(pack):
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            keep = torch.from_numpy(np.flatnonzero(row.trained[1:]))
            loss = cross_entropy(
                model(input_ids=ids, use_cache=False).logits[0, keep], ids[0, keep + 1], reduction="sum"
            )
            (loss / targets).backward()
            expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, p in named.items():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad, rtol=2e-4, atol=1e-6, msg=name)
    assert sum(float(grad.abs().sum()) for grad in found.values()) > 0


@pytest.mark.filterwarnings("ignore:.*falling back")
def test_packed_it_would_be_another_one_or_refused(model: PeftModel) -> None:
    """What the rows of their own are for, and how far the state reaches."""
    (pack,) = some(3, [[9, 5, 14]])
    model.eval()
    loss, tokens = held_out_loss(model, [pack], "cpu")
    assert loss is not None
    apart = [held_out_loss(model, [row], "cpu") for row in split_documents(pack)]
    assert loss * tokens == pytest.approx(
        sum(one * count for one, count in apart if one is not None), rel=1e-6
    )
    try:
        together = summed_loss(model, collate([pack])).item()
    except StageError:
        return  # a family that tells its attention no positions
    assert abs(together - loss * tokens) > 1e-6


@pytest.mark.filterwarnings("ignore:.*falling back")
def test_the_proofs_are_of_what_is_done(model: PeftModel) -> None:
    packs = some(4, [[9, 5, 14], [7, 12]])
    assert carried_state(model)
    engine = TorchEngine(
        model,
        optimizers.build_optimizer(trainable_parameters(model), Optim(), device=torch.device("cpu")),
        loss=summed_loss,
    )
    found = prove(
        engine,
        model,
        packs,
        World(rank=0, size=1, device=torch.device("cpu")),
        where=lambda pack: [f"rows:{line}" for line in pack.lines],
        template=None,
        whole=True,
        compute=torch.float32,
        autocast=None,
        quant="none",
        zero_adapter=False,
        apart=True,
    )
    assert found["packed"] == 0
    assert found["accumulated"] == 0
    assert found["attention"] < 2e-4


def test_what_is_not_finite_is_in_one_document() -> None:
    rows = list(SingleDocuments(some(5, [[4, 2], [3]])))
    places = micro_batch_origins(rows, 1, 2, lambda pack: [f"rows:{line}" for line in pack.lines])
    assert [(place.rank, place.rows()) for place in places] == [
        (0, ["rows:0"]),
        (0, ["rows:10"]),
        (1, ["rows:1"]),
        (1, []),
    ]
