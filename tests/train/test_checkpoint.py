"""Steps on the disk: whole or not there, the best one kept, and what nothing goes on from given back."""

from pathlib import Path

import pytest
import torch

from tuner.errors import StageError
from tuner.train import checkpoint, steps
from tuner.train.engine import State


def state(value: float) -> State:
    return State(weights={"w": torch.full((3, 2), value)}, optimizer={"w/step": torch.tensor(value), "w/exp_avg": torch.zeros(3, 2)})


def save(out: Path, step: int, *, optimizer: bool = True, held_out: float = 1.0) -> Path:
    checkpoint.save(out, state(step), step=step, tokens=10 * step, scores={"loss": 2.0, "held_out": held_out}, optimizer=optimizer)
    return out / "steps" / f"step-{step:06d}"


def numbers(out: Path) -> list[int]:
    return [found.step for found in steps.kept(out)]


def test_round_trip(tmp_path: Path) -> None:
    assert steps.newest(tmp_path) is None
    save(tmp_path, 9)
    save(tmp_path, 10)
    found = steps.newest(tmp_path)
    assert found is not None
    assert (found.step, found.tokens, found.dir.name, found.resumable) == (10, 100, "step-000010", True)
    read = checkpoint.read(found)
    assert torch.equal(read.weights["w"], state(10).weights["w"])
    assert read.optimizer["w/step"].item() == 10
    assert read.optimizer["w/step"].shape == ()


def test_a_step_without_an_optimizer_is_whole(tmp_path: Path) -> None:
    saved = save(tmp_path, 3, optimizer=False)
    assert sorted(path.name for path in saved.iterdir()) == ["state.json", "weights.safetensors"]
    found = steps.newest(tmp_path)
    assert found is not None
    assert (found.step, found.resumable) == (3, False)
    assert checkpoint.read(found).optimizer == {}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_step_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage == "cut" else bytes([content[0] ^ 255]) + content[1:])
    found = steps.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    save(tmp_path, 2)  # written again in its place
    assert steps.newest(tmp_path).step == 2  # type: ignore[union-attr]


def test_prune_leaves_the_newest_the_best_and_the_pinned(tmp_path: Path) -> None:
    for step, held_out in ((5, 3.0), (6, 1.0), (7, 2.0), (999_999, 2.5), (1_000_000, 2.6)):
        save(tmp_path, step, held_out=held_out)
    (tmp_path / "steps" / "step-1000001.tmp").mkdir()
    steps.prune(tmp_path, keep=2, by="held_out", pinned=5, resumable=1)
    assert numbers(tmp_path) == [5, 6, 999_999, 1_000_000]
    assert [found.step for found in steps.kept(tmp_path) if found.resumable] == [1_000_000]
    assert all(found.whole() for found in steps.kept(tmp_path))
    assert not list((tmp_path / "steps").glob("*.tmp"))
    assert not (tmp_path / "steps" / "step-000006" / "optimizer.safetensors").exists()


def test_the_best_is_the_lowest_and_the_earliest_of_equals(tmp_path: Path) -> None:
    for step, held_out in ((1, 3.0), (2, 1.0), (3, 1.0)):
        save(tmp_path, step, held_out=held_out)
    found = steps.kept(tmp_path)
    assert steps.choose(found, "best", "held_out") == found[1]
    assert steps.choose(found, "last", "held_out") == found[2]
    assert steps.choose(found, 1, "held_out") == found[0]
    assert steps.choose(found, 7, "held_out") is None
    assert steps.choose(found, "best", "accuracy") is None


def test_a_step_is_adopted_by_another_training(tmp_path: Path) -> None:
    source, out = tmp_path / "a", tmp_path / "b"
    out.mkdir()
    saved = save(source, 4)
    (source / "metrics.jsonl").write_text('{"step": 4}\n', encoding="utf-8")
    (source / "facts.json").write_text('{"device": "cpu", "threads": 1, "other": 2}', encoding="utf-8")
    steps.adopt(source, out, steps.kept(source)[0])
    (found,) = steps.kept(out)
    assert found.whole()
    assert (out / "steps" / "step-000004" / "weights.safetensors").samefile(saved / "weights.safetensors")
    assert (out / "facts.json").read_text(encoding="utf-8") == '{"device": "cpu", "threads": 1}'
    assert (out / "metrics.jsonl").exists()


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("in the way", encoding="utf-8")
    with pytest.raises(StageError, match=r"Step 1 could not be saved in .*steps: .*the same command continues"):
        save(tmp_path, 1)
