"""What a plan says of GPU memory and time, for cards that are described and not there."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tuner
from tests.hardware.smi import nvidia_smi
from tuner.config.schema import Algo, Config, Data, Machine
from tuner.errors import ConfigError
from tuner.estimate import training
from tuner.estimate.disk import training_order
from tuner.estimate.flops import costs
from tuner.estimate.recompute import NOTHING, Recompute
from tuner.estimate.training import (
    GpuEstimate,
    PackCounts,
    estimate_on_gpu,
    pack_counts,
    training_gpu,
    training_seconds,
)
from tuner.estimate.what_fits import GIB
from tuner.hardware.nvidia_smi import Gpu

INTERN = {
    "model_type": "llama",
    "vocab_size": 92544,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
H100 = Gpu(
    index=0, uuid="GPU-1", name="NVIDIA H100 80GB HBM3", memory_total=81559, memory_used=0, driver="580"
)


def card(gib: int) -> Gpu:
    return replace(H100, memory_total=gib * 1024)


def ahead(gib: int, **machine: Any) -> GpuEstimate:
    config = Config(algo=Algo(batch_tokens=16 * 2048), data=Data(length=2048), machine=Machine(**machine))
    return estimate_on_gpu(
        INTERN, config, training_order(1000, config), PackCounts(length=2048, targets=0.5), card(gib)
    )


def test_with_room_a_gpu_is_filled_and_with_less_the_fastest_is_taken_that_fits() -> None:
    found = [ahead(gib) for gib in (10_000, 30, 24, 16, 6)]
    assert all(one.fits and one.compiled for one in found)
    assert (found[0].micro, found[0].recompute) == (8, NOTHING)  # 16,384 tokens
    assert found[0].sentence.endswith("8 packs at once, compiled")
    assert found[1].recompute == Recompute(norms=True)
    assert found[1].sentence.endswith("8 packs at once, compiled, recomputing norms")
    assert found[-1].recompute.blocks
    assert "recomputing" in found[-1].sentence
    for one, gib in zip(found, (10_000, 30, 24, 16, 6), strict=True):
        assert one.memory.total <= 0.94 * gib * GIB


def test_a_number_of_gib_is_as_a_card_of_that_size() -> None:
    capped, small = ahead(80, memory=18.0), ahead(18)
    assert (capped.micro, capped.recompute) == (small.micro, small.recompute)
    least = ahead(80, memory="small")
    assert (least.micro, least.recompute) == (1, Recompute(norms=True, blocks=24))
    assert ahead(24, memory="fast", micro_batch=8).fits is False


@pytest.mark.parametrize(
    ("machine", "compiled"),
    [
        ({"kernels": "fused"}, False),
        ({"deterministic": True, "kernels": "compiled"}, True),
        ({"zero": 2}, False),
        ({"kernels": "compiled"}, True),
    ],
)
def test_a_plan_knows_whether_layers_are_compiled(machine: dict[str, Any], compiled: bool) -> None:
    found = ahead(80, micro_batch=8, recompute="none", **machine)
    assert found.compiled == compiled
    assert (found.memory.activations < 30 * GIB) == compiled


def test_what_does_not_fit_says_so_with_what_would() -> None:
    found = ahead(6, micro_batch=4)
    assert not found.fits
    assert any("algo.quant=nf4" in words for words in found.ways)
    assert f"fullest in {found.memory.moment}" in found.sentence
    assert "will not fit; these would: machine.micro_batch=1" in found.sentence
    assert ahead(1).ways == ()


def test_several_processes_share_what_zero_shards() -> None:
    one = ahead(40, micro_batch=1)
    four = ahead(40, micro_batch=1, gpus=4, zero=3)
    assert four.memory.weights < one.memory.weights / 3.9


def test_time_follows_from_the_operations() -> None:
    config = Config(data=Data(length=512))
    packs, tokens = PackCounts(length=512, targets=1.0), 1e6
    found = training_seconds(INTERN, config, tokens, packs, H100, recompute=0.0)
    assert found == pytest.approx(
        costs(INTERN, Algo()).model([512], 512) * tokens / 512 / (989.4e12 * training.REACHED)
    )
    assert (
        training_seconds(INTERN, config, tokens, packs, replace(H100, name="Voodoo 2"), recompute=0.0) is None
    )
    again = training_seconds(INTERN, config, tokens, packs, H100, recompute=1.0)
    assert again is not None
    assert found is not None
    assert 1.3 < again / found < 1.6  # a second forward pass, of what is 4 units otherwise


def test_the_smallest_card_that_is_asked_for_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [card(80), replace(card(24), index=1), replace(card(16), index=2, mig=True)]
    monkeypatch.setattr(training, "list_gpus", lambda: cards)
    assert training_gpu(Config()) == cards[1]
    assert training_gpu(Config(machine=Machine(gpus=(0,)))) == cards[0]
    assert training_gpu(Config(machine=Machine(device="cpu"))) is None

    def broken() -> list[Gpu]:
        raise ConfigError("nvidia-smi did not answer")

    monkeypatch.setattr(training, "list_gpus", broken)
    assert training_gpu(Config()) is None


def test_targets_are_counted_once_they_can_be() -> None:
    assert pack_counts(Config(), None).targets == 0.5
    assert pack_counts(Config(data=Data(loss="all")), None).targets == 1.0
    assert pack_counts(Config(), {"tokens": 1000, "trained_tokens": 200}).targets == pytest.approx(0.23)
    assert pack_counts(Config(), {"tokens": 1000, "trained_tokens": 990}).targets == 1.0


def test_memory_is_told_before_the_data_is_there(tuner: Tuner, tmp_path: Path) -> None:
    bin_ = nvidia_smi(tmp_path / "bin", "0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 0, 580.1, Disabled\n")
    done = tuner(
        "plan",
        "model=internlm2_1_8b",
        "algo=qlora",
        "data=oasst1",
        "--json",
        env={"PATH": f"{bin_}:{os.environ['PATH']}"},
    )
    estimate = json.loads(done.out)["estimate"]
    assert estimate["until the data is downloaded"] == "tokens and steps are not known"
    assert re.fullmatch(
        r"~\d+\.\d of 80 GiB, \d+ packs? at once.* \(NVIDIA H100 80GB HBM3\)", estimate["GPU memory"]
    )
    done = tuner(
        "plan",
        "model=internlm2_1_8b",
        "algo=qlora",
        "data=oasst1",
        "until=tokenize",
        "--json",
        env={"PATH": f"{bin_}:{os.environ['PATH']}"},
    )
    assert "GPU memory" not in json.loads(done.out)["estimate"]  # nothing is to be trained
