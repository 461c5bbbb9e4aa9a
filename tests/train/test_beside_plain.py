"""The training is that of transformers and PEFT: in fp32 each step has the loss and the gradient norm that
these give when one writes the loop by hand.
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import REPO
from tuner.data.packs import Packs
from tuner.train.training_data import MEASURED

STEPS = 8


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The two sides of scripts/bench train."""
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        import bench_plain
        import bench_train
    finally:
        sys.path.pop(0)
    yield SimpleNamespace(
        ALGOS=bench_plain.ALGOS,
        Setting=bench_plain.Setting,
        plain=bench_plain.plain,
        tuners=bench_train.tuners,
    )
    for name in ("bench_plain", "bench_train"):
        sys.modules.pop(name)


@pytest.fixture
def setting(bench: Any, tiny: Path, tokens: Path, packs: Packs, tmp_path: Path) -> Any:
    """Eight steps of two packs of several documents each, over seven packs: the order begins again on the
    way. A token of the documents pads too, as in models in which padding and the end of an answer are one: it
    must train all the same."""
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(
        json.dumps(config | {"pad_token_id": int(packs[0].ids[0])}), encoding="utf-8"
    )
    return bench.Setting(
        model=model, tokens=tokens, steps=STEPS, packs=2, measured=MEASURED, precision="fp32", device="cpu"
    )


@pytest.mark.parametrize(("algo", "lr"), [("lora", 3e-3), ("full", 1e-3), ("qlora", 3e-3)])
def test_each_step_is_that_of_plain_transformers_and_peft(
    algo: str, lr: float, bench: Any, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if algo == "qlora":
        pytest.importorskip("bitsandbytes", reason="4 bits are computed by bitsandbytes")
    # so high that a step changes the next one's loss in its first digits
    monkeypatch.setitem(bench.ALGOS, algo, bench.ALGOS[algo] | {"lr": lr})
    ours, theirs = bench.tuners(algo, 0, setting), bench.plain(algo, 0, setting)
    assert len(ours["loss"]) == STEPS
    # A batch's additions are in another order (rows against one long row), which is 1e-7 of a loss in fp32;
    # each step lets it grow.
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-5)
    assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=1e-5)
    assert theirs["held_out"] != pytest.approx(theirs["before"], rel=1e-3)  # what is equal is not nothing


def test_another_seed_is_another_training(bench: Any, setting: Any) -> None:
    short = dataclasses.replace(setting, steps=2)
    ours, other = bench.tuners("lora", 0, short), bench.plain("lora", 1, short)
    assert ours["loss"] != pytest.approx(other["loss"], rel=1e-3)
