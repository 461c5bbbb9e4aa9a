"""Where several processes go on from: the first looks, all check."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.checkpoints.test_steps import numbers, save
from tests.train.ranks import in_processes
from tuner.data.sampler import plan_order
from tuner.files import sha256_of
from tuner.train.checkpoints import resume, steps
from tuner.train.distributed import World


def begun(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """The step that a process goes on from, what the first one said, and which files this one read."""
    read, said = [], []
    steps.sha256_of = lambda path: read.append(f"{path.parent.name}/{path.name}") or sha256_of(path)  # type: ignore[assignment,func-returns-value]
    order = plan_order(9, 8, seed=0, epochs=1, steps=9, batch_tokens=8)
    found = resume.find_step(given["out"], order, world, said.append)
    return {"step": found.step if found else None, "said": said, "read": read, "left": numbers(given["out"])}


@pytest.mark.parametrize("wrong", [False, True])
def test_processes_share_the_files_to_check(tmp_path: Path, wrong: bool) -> None:
    out = tmp_path / "out"
    save(out, 1, of=2)
    newest = save(out, 2, of=2)
    if wrong:
        (newest / "weights-00002-of-00002.safetensors").write_bytes(b"something else")
    one, two = in_processes(
        "tests.train.checkpoints.test_resume:begun", {"out": out}, tmp_path / "ranks", size=2
    )
    assert one["step"] == two["step"] == (1 if wrong else 2)
    assert one["left"] == two["left"] == ([1] if wrong else [1, 2])
    looked = ["step-000002", "step-000001"] if wrong else ["step-000002"]
    assert one["read"] == [
        f"{step}/{kind}-00001-of-00002.safetensors" for step in looked for kind in ("optimizer", "weights")
    ]
    assert two["read"] == [
        f"{step}/{kind}-00002-of-00002.safetensors" for step in looked for kind in ("optimizer", "weights")
    ]
    words = (
        "step-000002 is damaged: weights-00002-of-00002.safetensors is not what was written; going on from "
        "step 1, the one before"
    )
    assert (one["said"], two["said"]) == ([words] if wrong else [], [])


def test_where_no_step_is_whole_all_begin_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (save(out, 1, of=2) / "state.json").unlink()
    (out / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    one, two = in_processes(
        "tests.train.checkpoints.test_resume:begun", {"out": out}, tmp_path / "ranks", size=2
    )
    assert [one["step"], two["step"], one["read"], two["read"]] == [None, None, [], []]
    assert not (out / "metrics.jsonl").exists()
