"""scripts/bench lora trains what it says: the composed options, on the same tokens, and measures all that
is held out.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tuner.config.compose import compose
from tuner.data.packs import Packs
from tuner.train.batch import count_targets


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        import bench_lora
    finally:
        sys.path.pop(0)
    yield bench_lora
    for name in ("bench_lora", "bench_plain", "bench_train"):
        sys.modules.pop(name, None)


def test_its_sides_are_options_of_conf(bench: Any) -> None:
    algos = {name: compose(list(words)).algo for name, words in bench.SIDES.items()}
    assert [(algo.r, algo.alpha) for name, algo in algos.items() if name.startswith("r ")] == [
        (16, "auto"),
        (64, 16),
    ]
    assert all(algo.lora_plus == 16 for name, algo in algos.items() if name.startswith("lora_plus"))
    assert len({algo.optim.lr for name, algo in algos.items() if name.startswith("lora_plus")}) == 4


def test_a_side_is_trained_and_measured(bench: Any, tiny: Path, tokens: Path) -> None:
    before, count = bench.before(tiny, Packs.open(tokens / "held_out.arrow"), "cpu")
    assert count == count_targets(list(Packs.open(tokens / "held_out.arrow")))
    words = [
        "model=local",
        f"model.path={tiny}",
        "data=local",
        "data.path=rows.jsonl",
        "data.length=48",
        "machine=cpu",
        "machine.threads=1",
    ]
    words += [
        "machine.trackers=[]",
        "machine.preflight=false",
        "algo.precision=fp32",
        "algo.steps=2",
        "algo.batch_tokens=48",
        "eval=none",
    ]
    inputs = {"fetch_model": tiny, "tokenize": tokens}
    sides = {
        name: {
            str(seed): bench.train([*words, *bench.SIDES[name], f"seed={seed}"], inputs) for seed in (0, 1, 2)
        }
        for name in ("r 16, alpha auto",)
    }
    ends = [one["held_out"] for one in sides["r 16, alpha auto"].values()]
    assert len(set(ends)) == 3
    assert all(abs(end - before) < 1 for end in ends)
    about = {
        "model": "tiny",
        "data": ["rows.jsonl"],
        "device": "cpu",
        "versions": "",
        "settings": {"steps": 2, "packs": 1, "length": 48},
    }
    text = bench.table(
        {
            "about": about,
            "before": before,
            "tokens": count,
            "sides": sides | {"half": {"0": sides["r 16, alpha auto"]["0"]}},
        }
    )
    assert f"| r 16, alpha auto | {sum(ends) / 3:.4f} | {' '.join(f'{end:.4f}' for end in ends)} |" in text
    assert "| half |" not in text
    assert "no option is better by this" in text
