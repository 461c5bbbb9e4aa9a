import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tuner.data.packs import Pack, Packs
from tuner.kernels.packed_documents import document_borders
from tuner.train.batch import Batch, collate, count_targets, empty_batch

NONE = np.zeros(2, dtype=np.int32)


def test_the_example_of_the_docstring() -> None:
    pack = Pack(
        ids=np.array([1, 2, 30, 4, 50], dtype=np.int32),
        trained=np.array([0, 0, 1, 0, 1], dtype=bool),
        lengths=np.array([3, 2], dtype=np.int32),
        files=NONE,
        lines=NONE,
    )
    batch = collate([pack, pack])
    assert batch.ids_1N.tolist() == [[1, 2, 30, 4, 50] * 2]
    assert batch.positions_1N.tolist() == [[0, 1, 2, 0, 1] * 2]
    assert batch.keep_M.tolist() == [1, 3, 6, 8]
    assert batch.targets_M.tolist() == [30, 50, 30, 50]
    assert batch.borders == (0, 3, 5, 8, 10)
    assert count_targets([pack, pack]) == 4


def test_counts_agree(packs: Packs) -> None:
    assert all(collate([pack]).targets_M.shape[0] == count_targets([pack]) for pack in packs)


def test_borders_are_those_that_the_positions_say(packs: Packs) -> None:
    batch = collate(list(packs))
    assert list(batch.borders) == document_borders(batch.positions_1N)


def test_packs_keep_their_numbers(packs: Packs) -> None:
    batch = collate([packs[4], packs[2]], indices=[4, 2], step=9)
    assert (batch.packs, batch.step) == (((4, len(packs[4].ids)), (2, len(packs[2].ids))), 9)
    assert [index for index, _ in collate([packs[4], packs[2]]).packs] == [0, 1]
    assert sum(tokens for _, tokens in batch.packs) == batch.ids_1N.shape[1]


def test_on_another_device_it_is_the_same(packs: Packs) -> None:
    batch = collate([packs[0]], indices=[5], step=3)
    there = batch.to("meta")
    assert {x.device.type for x in (there.ids_1N, there.positions_1N, there.keep_M, there.targets_M)} == {
        "meta"
    }
    assert (there.borders, there.packs, there.step) == (batch.borders, batch.packs, batch.step)


def test_an_empty_batch_runs_forward_and_backward_and_changes_nothing() -> None:
    batch = empty_batch(step=4)
    assert isinstance(batch, Batch)
    assert (len(batch.targets_M), batch.step) == (0, 4)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    logits = model(
        input_ids=batch.ids_1N, position_ids=batch.positions_1N, logits_to_keep=batch.keep_M
    ).logits
    assert logits.shape == (1, 0, 8)
    logits.sum().backward()
    assert all(p.grad is None or not torch.any(p.grad) for p in model.parameters())


def test_lengths_must_cover_the_pack() -> None:
    pack = Pack(
        ids=np.arange(3, dtype=np.int32),
        trained=np.ones(3, dtype=bool),
        lengths=np.array([2], dtype=np.int32),
        files=NONE[:1],
        lines=NONE[:1],
    )
    with pytest.raises(ValueError, match="2 tokens together, the packs 3"):
        collate([pack])
