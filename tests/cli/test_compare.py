"""`compare` tells what the runs' own files say, trains nothing, and needs neither the data nor a finished
training.
"""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tuner, environment
from tuner.cli.compare_runs import compare
from tuner.errors import ConfigError, StoreError
from tuner.pipeline.find_run import find_run
from tuner.pipeline.run import RunDirectory


@pytest.fixture(scope="module")
def pair(finished: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two runs: the finished one, and one of two steps on a copy of the data that is gone
    since.
    """
    place = tmp_path_factory.mktemp("pair")
    root = place / "outputs"
    shutil.copytree(finished, root, symlinks=True)
    source = Path(next(word for word in words if word.startswith("data.path=")).partition("=")[2])
    mine = place / "mine" / source.name
    mine.parent.mkdir()
    shutil.copy(source, mine)
    more = [
        "algo.steps=2",
        f"data.path={mine}",
        "name=第二次",
        "note=<b>fewer</b>",
        "tags=[客服,short]",
        "merge.when=never",
    ]
    subprocess.run(
        [sys.executable, "-m", "tuner", f"root={root}", *words, *more],
        env=environment(),
        check=True,
        capture_output=True,
    )
    shutil.rmtree(mine.parent)
    return root


@pytest.fixture
def root(pair: Path, tmp_path: Path) -> Path:
    shutil.copytree(pair, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


@pytest.fixture
def runs(root: Path) -> list[RunDirectory]:
    """The finished run, and the second one."""
    second = find_run(root, "第二次")
    (first,) = (RunDirectory(path) for path in (root / "runs").iterdir() if path != second.dir)
    return [first, second]


@pytest.fixture
def stopped(runs: list[RunDirectory], root: Path) -> Iterator[RunDirectory]:
    """The second run as its training left it after step 1, in the middle of writing a row."""
    run = runs[1]
    key = run.key("train")
    assert key is not None
    partial = root / "store" / ".partial" / key
    (root / "store" / key).rename(partial)
    (partial / "manifest.json").unlink()
    row = (partial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (partial / "metrics.jsonl").write_text(f"{row}\n{row[: len(row) // 2]}", encoding="utf-8")
    for stage in ("train", "convert", "evaluate"):
        (run.dir / stage).unlink(missing_ok=True)
    run.link("train", partial)
    return run


def facts(run: RunDirectory, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.dir / stage / "manifest.json").read_text(encoding="utf-8"))[
        "facts"
    ]
    return found


def files(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.lstat().st_mtime_ns
        for path in root.rglob("*")
        if path.parent.name != ".hashes"
    }


def test_two_runs_side_by_side(tuner: Tuner, root: Path, runs: list[RunDirectory], tiny_model: Path) -> None:
    first, second = runs
    before = files(root)
    done = tuner("compare", "第二次", first.digest, f"root={root}")
    lines = done.out.splitlines()
    assert lines[0].split()[:3] == ["A", second.dir.name, "evaluated"]
    assert lines[1].split()[:3] == ["B", first.dir.name, "evaluated"]
    # below each other: the data's places do not fit beside each other
    assert "algo.steps\n  A  2\n  B  6\n" in done.out
    page = root / "compare" / f"{second.digest}-{first.digest}.html"
    assert lines[-1] == f"page    {page}"
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;fewer&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "数据 (1).jsonl, elsewhere" in html
    assert str(root.parent) not in html
    assert str(tiny_model.parent) not in html
    assert files(root).keys() - before.keys() == {"compare", f"compare/{page.name}"}
    assert {name: time for name, time in files(root).items() if name in before and name != "."} == before


def test_for_machines(tuner: Tuner, root: Path, runs: list[RunDirectory]) -> None:
    done = tuner("compare", runs[0].digest, runs[1].digest, "--json", f"root={root}")
    told = json.loads(done.out)
    assert [row["run"] for row in told["runs"]] == [run.dir.name for run in runs]
    assert told["runs"][1]["tags"] == ["客服", "short"]
    assert {row["field"] for row in told["differing"]} == {"algo.steps", "data.path"}
    values = {name: row["values"] for name, row in told["scores"].items()}
    assert values["steps"] == [6, 2]
    for name, stage, fact in (
        ("held_out_loss", "evaluate", "loss"),
        ("held_out_loss_base", "evaluate", "base_loss"),
        ("loss", "train", "loss"),
        ("tokens", "train", "tokens"),
        ("seconds", "train", "seconds"),
        ("trainable", "train", "trainable"),
        ("step", "convert", "step"),
        ("bytes", "convert", "bytes"),
    ):
        assert values[name] == [facts(run, stage)[fact] for run in runs], name
    best = min((0, 1), key=lambda i: values["held_out_loss"][i])
    assert told["scores"]["held_out_loss"]["best"] == [best]
    for run, curve in zip(runs, told["curves"]["loss"], strict=True):
        rows = [
            json.loads(line)
            for line in (run.dir / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert curve == [[row["step"], row["loss"]] for row in rows]
    assert not (root / "compare").exists()


def test_a_training_that_is_not_finished(
    stopped: RunDirectory, runs: list[RunDirectory], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(runs, root, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][1]["state"] == "stopped at step 1"
    values = {name: row["values"] for name, row in told["scores"].items()}
    assert values["steps"] == [6, 1]
    assert values["held_out_loss"][1] is None
    assert values["step"] == [6, None]
    assert [len(curve) for curve in told["curves"]["loss"]] == [6, 1]
    key = stopped.key("train")
    assert key is not None
    with (root / "store" / ".locks" / key).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compare(runs, root, as_json=False)
    assert "training, step 1" in capsys.readouterr().out


def test_other_held_out_tokens_are_seen(
    runs: list[RunDirectory], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another draw of held-out rows makes another file of them; its digest in the manifest is what tells."""
    key = runs[1].key("tokenize")
    assert key is not None
    shutil.copytree(root / "store" / key, root / "store" / "tokenize-other")
    manifest = root / "store" / "tokenize-other" / "manifest.json"
    text = json.loads(manifest.read_text(encoding="utf-8"))
    text["files"]["held_out.arrow"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(text), encoding="utf-8")
    runs[1].link("tokenize", root / "store" / "tokenize-other")
    compare(runs, root, as_json=False)
    assert "different tokens (A | B)" in capsys.readouterr().out


def test_what_can_not_be_compared_is_refused(runs: list[RunDirectory], root: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        compare([*runs, RunDirectory(root / "runs" / "." / runs[0].dir.name)], root, as_json=False)
    with pytest.raises(ConfigError, match="2 to 20 runs"):
        compare(runs[:1], root, as_json=False)


def test_a_page_that_can_not_be_written_costs_only_the_page(
    runs: list[RunDirectory], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "compare").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="can't be written: File exists"):
        compare(runs, root, as_json=False)
    assert "algo.steps" in capsys.readouterr().out


def test_a_run_of_which_nothing_is_left(
    runs: list[RunDirectory], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "store")
    assert compare(runs, root, as_json=False) == 0
    assert "not trained" in capsys.readouterr().out
