"""`reproduce` makes a finished run again, finds the same bits, and names what is not as it was."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Tuner, environment, linked
from tuner.files import sha256_of
from tuner.pipeline.remade import BAND, UNEXPLAINED, compare_artifacts
from tuner.pipeline.reproduce import as_recorded
from tuner.pipeline.run import RunDirectory
from tuner.stages import STAGES
from tuner.store.artifacts import Artifact, Store

NAMES = [stage.name for stage in STAGES]


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished root."""
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


def run_of(root: Path) -> Path:
    (run,) = (root / "runs").iterdir()
    return run


def edit_config(root: Path, **fields: Any) -> None:
    """Set fields at the top of a run's config, or in one of its groups."""
    file = run_of(root) / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in fields.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


def edit_manifest(root: Path, stage: str, **parts: Mapping[str, Any]) -> None:
    """Have a stage's manifest say something else, in some of its parts."""
    file = linked(root, stage) / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest |= {name: manifest[name] | part for name, part in parts.items()}
    file.write_text(json.dumps(manifest), encoding="utf-8")


def told(tuner: Tuner, *words: str, code: int) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(tuner("reproduce", "last", "--json", *words, code=code).out)
    return result


def states(result: Mapping[str, Any]) -> list[str]:
    return [stage["state"] for stage in result["stages"]]


def first(result: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    return tuple(result["first"][name] for name in ("stage", "differences", "causes"))  # type: ignore[return-value]


@pytest.mark.slow
def test_a_run_on_the_cpu_is_the_same_bit_for_bit(tuner: Tuner, root: Path) -> None:
    """Also where another version is recorded, which is named; and the root and what is beside it stay as they
    were.
    """
    edit_manifest(root, "train", libraries={"torch": "2.0.0"})
    before = {path: path.lstat().st_mtime_ns for path in root.parent.rglob("*") if ".hashes" not in str(path)}
    done = tuner("reproduce", "last")
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[1:-2]] == [[name, "equal"] for name in NAMES]
    assert lines[-2].startswith("not as recorded: torch 2.0.0 → ")
    assert lines[-1] == "all that was compared is the same, bit for bit"
    assert len(set(done.err.splitlines())) == len(done.err.splitlines())  # each line once
    after = {path: path.lstat().st_mtime_ns for path in root.parent.rglob("*") if ".hashes" not in str(path)}
    assert after.keys() == before.keys()
    assert {path.name for path in before if before[path] != after[path]} <= {root.parent.name, ".locks"}


def test_one_that_is_stopped_says_that_it_begins_again(root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "reproduce", "last", f"root={root}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that runs in the background ignores it, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = ""
    while not said.startswith("tokenize "):
        said = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    last = said.splitlines()[-1]
    assert last.startswith("tuner: reproduce was stopped before all was compared.")
    assert "The same command begins again" in last
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_a_flipped_byte_of_the_data_is_named_before_anything_is_made(
    tuner: Tuner, root: Path, words: list[str], tmp_path: Path
) -> None:
    source = Path(next(word for word in words if word.startswith("data.path=")).partition("=")[2])
    mine = tmp_path / "mine" / source.name
    mine.parent.mkdir()
    content = bytearray(source.read_bytes())
    content[content.index(b"plus")] ^= 1
    mine.write_bytes(content)
    edit_config(root, data={"path": [str(mine)]})
    result = told(tuner, code=4)
    stage, differences, causes = first(result)
    assert (stage, differences) == ("fetch_data", [f"the content of {mine.name} changed"])
    assert causes == ["a file is not what the run was made from, or the lock names another commit"]
    assert states(result) == ["differs", *["not made"] * 7]


def test_another_seed_is_named_before_anything_is_made(tuner: Tuner, root: Path) -> None:
    edit_config(root, seed=1)
    result = told(tuner, code=4)
    assert first(result)[:2] == ("train", ["seed 0 → 1"])
    assert states(result) == [*["not made"] * 3, "differs", *["not made"] * 4]
    text = tuner("reproduce", "last", code=4).out
    assert "first difference: train: seed 0 → 1\nlikely cause: the run's config is not what" in text


def test_another_version_of_a_piece_is_named(tuner: Tuner, root: Path) -> None:
    origin = json.loads((linked(root, "train") / "manifest.json").read_text(encoding="utf-8"))["origin"]
    origin["versions"]["loss"] = 0
    edit_manifest(root, "train", origin=origin)
    assert first(told(tuner, code=4))[:2] == ("train", ["loss version 0 → 1"])


def test_a_result_that_was_changed_since_is_named(tuner: Tuner, root: Path) -> None:
    file = linked(root, "tokenize") / "train.arrow"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = told(tuner, code=4)
    assert first(result)[:2] == ("tokenize", ["train.arrow has other content than was written"])


def test_what_is_not_finished_or_not_asked_is_refused(tuner: Tuner, root: Path) -> None:
    assert "it takes no fields (seed=2)" in tuner("reproduce", "last", "seed=2", code=2).err
    (run_of(root) / "train").unlink()
    assert (
        "has no finished train, so there is nothing to compare with" in tuner("reproduce", "last", code=2).err
    )


@pytest.mark.slow
def test_other_tokens_end_it_with_the_version_that_may_be_the_cause(tuner: Tuner, root: Path) -> None:
    """As another version of a library would have written them."""
    ledger = linked(root, "tokenize") / "ledger.json"
    ledger.write_bytes(ledger.read_bytes().replace(b"}", b" }", 1))
    files = {"ledger.json": {"sha256": sha256_of(ledger), "size": ledger.stat().st_size, "times": [0, 0]}}
    held = json.loads((linked(root, "tokenize") / "manifest.json").read_text(encoding="utf-8"))
    edit_manifest(root, "tokenize", files=files, libraries={"tokenizers": "0.1.0"})
    result = told(tuner, "--keep", code=4)
    now = held["libraries"]["tokenizers"]
    assert first(result) == ("tokenize", ["other bytes in ledger.json"], [f"tokenizers 0.1.0 → {now}"])
    assert states(result) == ["equal", "equal", "differs", *["not made"] * 5]
    assert (Path(result["root"]) / "store" / linked(root, "tokenize").name / "ledger.json").is_file()


@pytest.mark.slow
def test_other_weights_are_named_and_the_scores_compared_as_well(tuner: Tuner, root: Path) -> None:
    train = linked(root, "train")
    rows = (train / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    third = json.loads(rows[2])
    rows[2] = json.dumps(third | {"loss": third["loss"] + 1e-7})
    (train / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    file = train / "metrics.jsonl"
    files = {file.name: {"sha256": sha256_of(file), "size": file.stat().st_size, "times": [0, 0]}}
    edit_manifest(root, "train", files=files, facts={"threads": 2}, libraries={"torch": "2.0.0"})
    result = told(tuner, code=4)
    stage, (difference,), causes = first(result)
    assert (stage, difference.split()[:4]) == ("train", ["loss", "of", "step", "3"])
    assert [cause.split()[0] for cause in causes] == ["torch", "threads"]
    assert states(result) == [*["equal"] * 3, "differs", *["equal"] * 4]


def made(finished: Path, stage: str) -> Artifact:
    found = Store(finished / "store").find(linked(finished, stage).name)
    assert found is not None
    return found


TRAIN = next(stage for stage in STAGES if stage.name == "train")


@pytest.mark.parametrize(
    ("factor", "bits", "state"),
    [
        (1.0, True, "equal"),
        (1.0 + 1e-9, True, "differs"),
        (1.0 + BAND / 2, False, "close"),
        (1.0 + BAND * 1.1, False, "differs"),
    ],
)
def test_losses_are_held_to_their_bits_or_to_the_band(
    factor: float, bits: bool, state: str, finished: Path, tmp_path: Path
) -> None:
    old = made(finished, "train")
    shutil.copytree(old.path, tmp_path / "train")
    rows = [json.loads(line) for line in (old.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    for row in rows[3:]:
        row["loss"] *= factor
    (tmp_path / "train" / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), "utf-8"
    )
    result = compare_artifacts(TRAIN, old, Artifact(tmp_path / "train", old.manifest), bits=bits)
    assert result.state == state
    assert all(words.startswith("loss of step 4 ") for words in result.differences)
    assert list(result.causes) == ([UNEXPLAINED] if state == "differs" else [])


def test_weights_are_compared_where_bits_are_asked(finished: Path) -> None:
    old = made(finished, "train")
    files: dict[str, Any] = dict(old.manifest["files"])
    name = max(name for name in files if name.endswith("weights.safetensors"))
    files[name] = files[name] | {"sha256": "0" * 64}
    facts = old.manifest["facts"] | {"device": "cuda", "gpu": "NVIDIA H100"}
    new = Artifact(old.path, {**old.manifest, "files": files, "facts": facts, "cpu": "another"})
    strict, loose = (compare_artifacts(TRAIN, old, new, bits=bits) for bits in (True, False))
    assert strict.differences == [f"other bytes in {name}"]
    assert [words.split()[0] for words in strict.causes] == ["device", "gpu", "cpu"]
    assert loose.state == "close"
    assert loose.changed == strict.causes


def test_auto_is_what_it_meant_in_the_run(finished: Path, tmp_path: Path) -> None:
    config = RunDirectory(run_of(finished)).config()
    facts = {"train": {"device": "cpu", "threads": 3, "micro_batch": 2, "recompute": "none"}}
    again = as_recorded(config, facts | {"evaluate": {"device": "cpu", "threads": 3}}, tmp_path)
    assert (again.machine.micro_batch, again.machine.recompute, again.machine.device) == (2, "none", "cpu")
    assert again.machine.threads == 1  # as the person wrote it
    assert (again.root, again.lock) == (str(tmp_path), str(tmp_path / "tuner.lock"))
    assert again.merge.when == "never"
