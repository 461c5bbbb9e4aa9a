from pathlib import Path

import pytest
import torch

from tuner.errors import StageError
from tuner.train import checkpoint
from tuner.train.engine import State


def state(value: float) -> State:
    return State(weights={"w": torch.full((3, 2), value)}, optimizer={"w/step": torch.tensor(value), "w/exp_avg": torch.zeros(3, 2)})


def test_round_trip(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, state(9), step=9, tokens=90, last=False)
    checkpoint.save(tmp_path, state(10), step=10, tokens=100, last=False)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.tokens, found.dir.name) == (10, 100, "step-000010")
    read = checkpoint.read(found)
    assert torch.equal(read.weights["w"], state(10).weights["w"])
    assert read.optimizer["w/step"].item() == 10
    assert read.optimizer["w/step"].shape == ()


def test_the_last_step_has_no_optimizer_and_is_whole(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, state(1), step=3, tokens=1, last=True)
    assert sorted(path.name for path in saved.dir.iterdir()) == ["state.json", "weights.safetensors"]
    assert checkpoint.newest(tmp_path) == saved
    assert checkpoint.read(saved).optimizer == {}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_step_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, state(1), step=1, tokens=1, last=False)
    path = checkpoint.save(tmp_path, state(2), step=2, tokens=2, last=False).dir / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" and name != "state.json" else bytes([content[0] ^ 255]) + content[1:])
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    checkpoint.save(tmp_path, state(2), step=2, tokens=2, last=False)  # written again in its place
    assert checkpoint.newest(tmp_path).step == 2


def test_prune_leaves_the_newest_and_nothing_half_written(tmp_path: Path) -> None:
    for step in (5, 999_999, 1_000_000):
        checkpoint.save(tmp_path, state(step), step=step, tokens=0, last=False)
    (tmp_path / "steps" / "step-1000001.tmp").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["step-1000000", "step-999999"]
    assert checkpoint.newest(tmp_path).step == 1_000_000


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("in the way", encoding="utf-8")
    with pytest.raises(StageError, match=r"Step 1 could not be saved in .*steps: .*the same command continues"):
        checkpoint.save(tmp_path, state(1), step=1, tokens=0, last=False)
