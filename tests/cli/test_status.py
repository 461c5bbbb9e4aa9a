"""Every run that came to something has its row: an edited file hides no result, and failed inputs fill no
screen.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.conftest import Tuner, reasons, states, tiny_words, write_rows
from tuner.api import prepare
from tuner.pipeline.run import RunDirectory, store_of


def status(tuner: Tuner, *words: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(tuner("status", "--json", *words).out)
    return told


def test_an_edited_file_keeps_the_earlier_result_findable(
    tuner: Tuner, finished: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    # the finished run's artifacts, as a run on a file that is ours to edit
    words = [*tiny_words(tiny_model, data), f"root={tmp_path}/outputs", f"store={finished}/store"]
    config = prepare([*words, "name=support"])
    run = RunDirectory.of(config)
    run.create(config, store_of(config))
    (theirs,) = (finished / "runs").iterdir()
    for link in [link for link in theirs.iterdir() if link.is_symlink() and link.name != "report.md"]:
        run.link(link.name, link.resolve())
    assert set(states(tuner("plan", "--json", *words)).values()) == {"done"}

    was = hashlib.sha256(data.read_bytes()).hexdigest()[:6]
    data.write_bytes(data.read_bytes().replace(b"1 plus 1 is 2", b"1 plus 1 is two"))
    done = tuner(*words, "until=tokenize")
    assert "held-out loss" not in done.out  # that is of the other rows
    assert f"support+data.{was}" in done.err
    told = status(tuner, *words[-2:])
    rows = {row["name"]: row for row in told["runs"]}
    assert rows.keys() == {"support", f"support+data.{was}"}
    assert rows["support"]["state"] == "next: train"
    assert rows["support"]["loss"] is None
    earlier = rows[f"support+data.{was}"]
    assert earlier["state"] == "done"
    assert earlier["loss"] is not None
    assert was in earlier["note"]
    assert data.name in earlier["note"]
    assert told["unreferenced_bytes"] == 0
    # it is a run like any other: verbs on it work, and what follows is told against it
    assert earlier["run"] in tuner("merge", earlier["name"], *words[-2:]).out
    why = reasons(tuner("plan", "--json", *words))
    assert why["train"] == f"tokenize changes (against run {earlier['digest']})"


def test_a_name_is_refused_and_not_passed_over(tuner: Tuner) -> None:
    assert "takes no name (support)" in tuner("status", "support", code=2).err


def test_runs_whose_input_failed_are_counted_and_cleaned(
    tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    for name in ("broken", "worse"):
        write_rows(tmp_path / f"{name}.jsonl", [{"messages": "no list"}])
        tuner(*words, f"data.path={name}.jsonl", "root=out put", f"name={name}", code=2)
    tuner(*words, "until=tokenize", "root=out put", "name=whole")
    said = tuner("status", "root=out put").out
    assert "whole-" in said
    assert "broken-" not in said
    assert (
        "2 not started: nothing was made of their input. python -m tuner status --all 'root=out put' lists "
        "them, and python -m tuner clean --not-started 'root=out put' removes them"
    ) in said
    every = tuner("status", "--all", "root=out put").out
    assert "broken-" in every
    assert "not started" not in every
    assert [row["started"] for row in status(tuner, "root=out put")["runs"]] == [False, False, True]
    tuner("clean", "broken", "--not-started", "root=out put", code=2)
    assert "would be removed" in tuner("clean", "--not-started", "--dry-run", "root=out put").out
    assert tuner("clean", "--not-started", "root=out put").out.count("removed") == 2
    assert [row["name"] for row in status(tuner, "root=out put")["runs"]] == ["whole"]
    assert "was started" in tuner("clean", "--not-started", "root=out put").out
