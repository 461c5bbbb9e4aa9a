"""Steps on the disk, as they are known by their markers: which are there, which is best, what may go, and
where to go on from.
"""

import json
from pathlib import Path

import pytest
import torch

from tuner.train.checkpoints import removal, steps
from tuner.train.checkpoints import save as checkpoint
from tuner.train.engine import State


def save(out: Path, step: int, *, optimizer: bool = True, held_out: float = 1.0, of: int = 1) -> Path:
    """A step of one process, or of several, each with a part of every tensor."""
    scores, names = {"loss": 2.0, "held_out": held_out}, ("w", "w/exp_avg")
    savers = [checkpoint.Saver(out, rank=rank, of=of, timeout=10) for rank in range(of)]
    for rank, saver in enumerate(savers):
        part = {
            name: torch.full((12 // of,), float(step)) if of > 1 else torch.full((3, 4), float(step))
            for name in names
        }
        named = {f"{name}@{rank * 12 // of}" if of > 1 else name: tensor for name, tensor in part.items()}
        weights = {name: tensor for name, tensor in named.items() if "/" not in name}
        moments = {name: tensor for name, tensor in named.items() if "/" in name}
        state = State(weights=weights, optimizer=moments, shapes=dict.fromkeys(names, (3, 4)))
        saver.save(state, step=step, tokens=10 * step, scores=scores, optimizer=optimizer)
    for saver in savers:
        with saver:
            pass
    return out / "steps" / f"step-{step:06d}"


def numbers(out: Path) -> list[int]:
    return [found.step for found in steps.saved_steps(out)]


@pytest.mark.parametrize("of", [1, 2, 3])
def test_a_step_without_an_optimizer_is_whole(tmp_path: Path, of: int) -> None:
    save(tmp_path, 3, optimizer=False, of=of)
    found = steps.newest(tmp_path)
    assert found is not None
    assert (found.step, found.resumable, len(found.files)) == (3, False, of)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_step_is_passed_over_with_words(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content, said = path.read_bytes(), []
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage == "cut" else bytes([content[0] ^ 255]) + content[1:])
    found = steps.newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert said == [
        f"step-000002 is damaged: {name} is not what was written; going on from step 1, the one before"
    ]
    save(tmp_path, 2)  # written again in its place
    assert steps.newest(tmp_path, say=said.append).step == 2  # type: ignore[union-attr]
    assert len(said) == 1


def test_a_lost_file_of_one_process_damages_the_step(tmp_path: Path) -> None:
    said: list[str] = []
    (save(tmp_path, 1, of=2) / "optimizer-00002-of-00002.safetensors").unlink()
    assert steps.newest(tmp_path, say=said.append) is None
    assert (
        "optimizer-00002-of-00002.safetensors is not what was written; no step before it is intact, so "
        "training starts over" in said[0]
    )


def test_a_sound_training_is_said_nothing_about(tmp_path: Path) -> None:
    said: list[str] = []
    save(tmp_path, 1)
    save(tmp_path, 2, optimizer=False)
    found = steps.newest(tmp_path, lambda checkpoint: checkpoint.resumable, said.append)
    assert found is not None
    assert (found.step, said) == (1, [])
    assert steps.newest(tmp_path / "elsewhere", say=said.append) is None
    assert not said


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../secret": {"sha256": ""}, "weights.safetensors": {"sha256": ""}}},
        {"files": {"optimizer.safetensors": {"sha256": ""}}},
        {"files": {"weights-00001-of-00002.safetensors": {"sha256": ""}}},
        {"files": ["weights.safetensors"]},
        {"step": 8},
        {"step": "many"},
        {"scores": {"loss": "low"}},
        {"shapes": {"weights": {"w": ["wide"]}}},
    ],
)
def test_a_marker_that_no_save_writes_is_not_believed(tmp_path: Path, change: dict[str, object]) -> None:
    marker = save(tmp_path, 7) / "state.json"
    told = json.loads(marker.read_text(encoding="utf-8"))
    assert numbers(tmp_path) == [7]
    marker.write_text(json.dumps(told | change), encoding="utf-8")
    assert numbers(tmp_path) == []


@pytest.mark.parametrize("of", [1, 2])
def test_prune_leaves_the_newest_the_best_and_the_pinned(tmp_path: Path, of: int) -> None:
    for step, held_out in ((5, 3.0), (6, 1.0), (7, 2.0), (999_999, 2.5), (1_000_000, 2.6)):
        save(tmp_path, step, held_out=held_out, of=of)
    removal.prune(tmp_path, keep=2, by="held_out", pinned=5, resumable=1)
    assert numbers(tmp_path) == [5, 6, 999_999, 1_000_000]
    assert [found.step for found in steps.saved_steps(tmp_path) if found.resumable] == [1_000_000]
    assert all(found.whole() for found in steps.saved_steps(tmp_path))
    assert not list((tmp_path / "steps").glob("step-000006/optimizer*"))
    assert len(list((tmp_path / "steps").iterdir())) == 4


def test_what_another_process_is_writing_is_not_pruned_and_goes_when_a_training_starts(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1)
    for name in ("step-000002.tmp", "step-000000.old"):
        (tmp_path / "steps" / name).mkdir()
    removal.prune(tmp_path, keep=1, by="loss", pinned=None, resumable=1)
    assert len(list((tmp_path / "steps").iterdir())) == 3
    checkpoint.Saver(tmp_path, rank=1, of=2)
    assert len(list((tmp_path / "steps").iterdir())) == 3
    checkpoint.Saver(tmp_path, rank=0, of=2)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-000001"]


def test_steps_behind_the_one_gone_on_from_are_forgotten_damaged_or_not(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        directory = save(tmp_path, step)
    (directory / "state.json").unlink()
    removal.remove_after(tmp_path, after=1)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-000001"]


def test_the_best_is_the_lowest_and_the_earliest_of_equals(tmp_path: Path) -> None:
    for step, held_out in ((1, 3.0), (2, 1.0), (3, 1.0)):
        save(tmp_path, step, held_out=held_out)
    found = steps.saved_steps(tmp_path)
    assert steps.choose(found, "best", "held_out") == found[1]
    assert steps.choose(found, "last", "held_out") == found[2]
    assert steps.choose(found, 1, "held_out") == found[0]
    assert steps.choose(found, 7, "held_out") is None
    assert steps.choose(found, "best", "accuracy") is None


@pytest.mark.parametrize("of", [1, 2])
def test_a_step_is_adopted_by_another_training(tmp_path: Path, of: int) -> None:
    source, out = tmp_path / "a", tmp_path / "b"
    out.mkdir()
    saved = save(source, 4, of=of)
    (source / "metrics.jsonl").write_text('{"step": 4}\n', encoding="utf-8")
    (source / "initial.safetensors").write_bytes(b"first values")
    (source / "facts.json").write_text(
        '{"device": "cpu", "threads": 1, "zero": 3, "other": 2}', encoding="utf-8"
    )
    steps.adopt(source, out, steps.saved_steps(source)[0])
    (found,) = steps.saved_steps(out)
    assert found.whole()
    assert found.resumable
    for path in saved.glob("*.safetensors"):
        assert (out / "steps" / "step-000004" / path.name).samefile(path)
    assert json.loads((out / "facts.json").read_text(encoding="utf-8")) == {
        "device": "cpu",
        "threads": 1,
        "zero": 3,
    }
    assert (out / "metrics.jsonl").exists()
    assert (out / "initial.safetensors").read_bytes() == b"first values"


def test_the_content_of_a_step_is_its_weights_and_how_they_are_read(tmp_path: Path) -> None:
    saved = save(tmp_path, 1, of=2)
    (found,) = steps.saved_steps(tmp_path)
    plain = steps.weights_digest(tmp_path, found)
    removal.remove_optimizer(found)
    assert not (saved / "optimizer-00001-of-00002.safetensors").exists()
    assert steps.weights_digest(tmp_path, steps.saved_steps(tmp_path)[0]) == plain
    digests = {plain}
    for name in ("adapter_config.json", "initial.safetensors"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
        digests.add(steps.weights_digest(tmp_path, found))
    save(tmp_path / "other", 2, of=2)
    digests.add(steps.weights_digest(tmp_path / "other", steps.saved_steps(tmp_path / "other")[0]))
    assert len(digests) == 4


def test_what_differs_from_the_beginning_is_said() -> None:
    began = {"device": "cuda", "zero": 2, "threads": 4, "loss": 1.0}
    now = {"device": "cuda", "zero": 3, "processes": 2, "loss": 2.0}
    assert steps.changed_facts(began, now) == [
        "zero is 3 now and was 2 before; the last bits of the result may differ from an uninterrupted run"
    ]
