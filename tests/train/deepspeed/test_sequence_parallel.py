"""Processes that share rows compute what one process computes: real all-to-all between real processes, on
the processor.
"""

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)

from tests.train.conftest import make_pack
from tests.train.ranks import in_processes
from tuner.config.deepspeed import combination_of
from tuner.config.schema import Algo, Machine, Optim
from tuner.data.packs import Packs
from tuner.errors import ConfigError
from tuner.kernels.alibi import AlibiConfig, register_alibi
from tuner.kernels.attention import IMPLEMENTATION, register_attention
from tuner.kernels.packed_documents import documents_of
from tuner.models.stateful_layers import carried_state
from tuner.train.batch import Batch, collate, empty_batch, shard_batch
from tuner.train.deepspeed import sequence_parallel
from tuner.train.deepspeed.engine import ZeroEngine
from tuner.train.deepspeed.sequence_parallel import heads_mismatch, refuse_model
from tuner.train.deepspeed.settings import deepspeed_json
from tuner.train.distributed import World
from tuner.train.loss import summed_loss

WORDS = 64
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "use_cache": False,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "grouped": LlamaConfig(**SMALL, num_key_value_heads=2),
    "one key head": LlamaConfig(**SMALL, num_key_value_heads=1),
    "distances": AlibiConfig(**SMALL, num_key_value_heads=4),
    "caps and windows": Gemma2Config(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0
    ),
    "sinks": GptOssConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        num_local_experts=2,
        num_experts_per_tok=1,
    ),
}


def make_model(name: str) -> PreTrainedModel:
    """The same in every process."""
    register_alibi()
    register_attention()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=IMPLEMENTATION)
    for key, p in model.named_parameters():
        if key.endswith("sinks"):
            torch.nn.init.normal_(p)
    return model.train()


def make_batches() -> list[Batch]:
    """Two rows of two packs, one of which is of an odd length, and one of no pack."""
    draw = random.Random(5)
    packs = [make_pack(draw, index) for index in range(4)]
    for pack in packs:
        pack.ids[:] %= WORDS
    rows = [collate(packs[:2], indices=[0, 1]), collate(packs[2:], indices=[2, 3]), empty_batch()]
    assert any(row.ids_1N.shape[1] % 2 for row in rows)
    return rows


def shared(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """Losses and gradients of rows that all processes share."""
    group = sequence_parallel.group_of(world.rank, world.size, world.size)
    made = {}
    for name in given["names"]:
        model = make_model(name)
        case = combination_of(
            Machine(
                engine="deepspeed", processes=world.size, zero=given["zero"], sequence_parallel=world.size
            ),
            Algo(adapter="none"),
            processes=world.size,
        )
        count = sum(p.numel() for p in model.parameters())
        settings = deepspeed_json(case, device="cpu", trainable=count, hidden=32, largest=2048)
        engine = ZeroEngine(model, world=world, settings=settings, optim=Optim(lr=1e-3), loss=summed_loss)
        sequence_parallel.install(group)
        if given["recompute"]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in a later transformers
                model.gradient_checkpointing_enable({"use_reentrant": False})
        batches = [shard_batch(batch, world.rank, world.size) for batch in make_batches()]
        losses = engine.forward_backward(batches, given["targets"]).tolist()
        made[name] = {
            "losses": losses,
            "gradients": {key: value.clone() for key, value in engine.gradients()},
        }
        sequence_parallel.remove()
        # each for itself again, and without an announcement: the borders are read off the slices of positions
        with torch.no_grad():
            alone = summed_loss(model, make_batches()[0]).item()
            sequence_parallel.install(group)
            model.eval()
            slice_ = batches[0]
            logits = model(
                input_ids=slice_.ids_1N, position_ids=slice_.positions_1N.clone(), use_cache=False
            ).logits[0]
            sequence_parallel.remove()
            loss = torch.nn.functional.cross_entropy(logits[slice_.keep_M], slice_.targets_M, reduction="sum")
        made[name] |= {"alone": alone, "unannounced": loss.item()}
    return made


def expected(name: str, targets: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = make_model(name)
    losses = []
    for batch in make_batches():
        loss = summed_loss(model, batch)
        (loss / targets).backward()
        losses.append(loss.item())
    return losses, {
        key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("size", "zero", "names", "recompute"),
    [
        pytest.param(2, 2, ["grouped", "one key head"], False, id="2 processes"),
        pytest.param(
            2, 3, [*CONFIGS], True, id="2 processes, every kind, recomputed", marks=pytest.mark.slow
        ),
        pytest.param(
            4, 0, ["grouped", "distances", "sinks"], False, id="4 processes", marks=pytest.mark.slow
        ),
    ],
)
def test_processes_that_share_rows_compute_what_one_computes(
    size: int, zero: int, names: list[str], recompute: bool, tmp_path: Path
) -> None:
    targets = sum(len(batch.targets_M) for batch in make_batches())
    given = {"names": names, "zero": zero, "targets": targets, "recompute": recompute}
    ranks = in_processes(
        "tests.train.deepspeed.test_sequence_parallel:shared", given, tmp_path / "ranks", size=size
    )
    for name in names:
        losses, gradients = expected(name, targets)
        for n, loss in enumerate(losses):
            assert sum(rank[name]["losses"][n] for rank in ranks) == pytest.approx(loss, rel=1e-6), name
        assert sum(rank[name]["unannounced"] for rank in ranks) == pytest.approx(losses[0], rel=1e-6)
        assert ranks[0][name]["alone"] == pytest.approx(losses[0], rel=1e-6)
        for rank in ranks:
            assert rank[name]["gradients"].keys() == gradients.keys()
            for key, wanted in gradients.items():
                assert (rank[name]["gradients"][key] - wanted).norm() <= 1e-6 * wanted.norm(), (name, key)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_slices_are_the_row(packs: Packs, size: int) -> None:
    row = collate([packs[0], packs[1]], indices=[5, 9], step=3)
    slices = [shard_batch(row, rank, size) for rank in range(size)]
    tokens, each = row.ids_1N.shape[1], slices[0].ids_1N.shape[1]
    assert (
        {piece.ids_1N.shape for piece in slices}
        == {piece.positions_1N.shape for piece in slices}
        == {(1, each)}
    )
    assert 0 <= each * size - tokens < size
    ids, positions = (
        torch.cat([getattr(piece, name) for piece in slices], dim=1) for name in ("ids_1N", "positions_1N")
    )
    assert torch.equal(ids[:, :tokens], row.ids_1N)
    assert torch.equal(positions[:, :tokens], row.positions_1N)
    assert documents_of(positions).borders == slices[-1].borders
    assert torch.equal(
        torch.cat([piece.keep_M + rank * each for rank, piece in enumerate(slices)]), row.keep_M
    )
    assert torch.equal(torch.cat([piece.targets_M for piece in slices]), row.targets_M)
    assert {piece.step for piece in slices} == {3}
    assert all(sum(count for _, count in piece.packs) == each for piece in slices)
    keys = [index for piece in slices for index, _ in piece.packs]
    assert len(set(keys)) == len(keys), "no two pieces of a pack have the same noise"


def test_the_example_of_the_docstring() -> None:
    row = Batch(
        ids_1N=torch.tensor([[1, 2, 30, 4, 50]]),
        positions_1N=torch.tensor([[0, 1, 2, 0, 1]]),
        keep_M=torch.tensor([1, 3]),
        targets_M=torch.tensor([30, 50]),
    )
    first, second = shard_batch(row, 0, 2), shard_batch(row, 1, 2)
    assert (first.positions_1N.tolist(), first.keep_M.tolist(), first.borders) == (
        [[0, 1, 2]],
        [1],
        (0, 3, 5, 6),
    )
    assert (second.positions_1N.tolist(), second.keep_M.tolist(), second.borders) == (
        [[0, 1, 0]],
        [0],
        (0, 3, 5, 6),
    )


@pytest.mark.parametrize(
    ("heads", "kv", "size", "best"),
    [(14, 2, 4, 2), (9, 3, 2, 1), (16, 6, 4, 2), (12, 4, 3, 2), (8, 8, 16, 8)],
)
def test_heads_that_cannot_be_dealt_out(heads: int, kv: int, size: int, best: int) -> None:
    said = heads_mismatch(heads, kv, size)
    assert said is not None
    assert f"over {best} process" in said
    assert heads_mismatch(heads, kv, best) is None


def test_models_whose_rows_cannot_be_shared_are_refused() -> None:
    hybrid = Qwen3_5TextConfig(num_hidden_layers=4)
    with torch.device("meta"):
        state = carried_state(AutoModelForCausalLM.from_config(hybrid))
    refuse_model(CONFIGS["caps and windows"], 2)
    with pytest.raises(
        ConfigError,
        match=(
            r"sequence_parallel=3 splits .* its 4 attention heads, with 2 for keys and values, can be split"
            r" over 2 processes, and not over 3"
        ),
    ):
        refuse_model(CONFIGS["grouped"], 3)
    with pytest.raises(
        ConfigError,
        match=r"layers of another kind \(linear_attention layers\). Leave machine.sequence_parallel=1",
    ):
        refuse_model(hybrid, 2, state)
