"""A run is called by its name, path, digest or `last`, and may be renamed; what it is called decides
nothing.
"""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Tuner
from tuner.config.schema import Algo, Config, Data, Model, Optim
from tuner.errors import ConfigError
from tuner.pipeline.find_run import differing_fields, find_run
from tuner.pipeline.run import RunDirectory, run_digest, store_of


def config(root: Path, **changes: object) -> Config:
    return replace(Config(root=str(root), model=Model(path="m"), data=Data(path="d")), **changes)


def made(root: Path, **changes: object) -> RunDirectory:
    wish = config(root, **changes)
    run = RunDirectory.of(wish)
    run.create(wish, store_of(wish))
    run.log("made")
    return run


def test_every_way_to_name_a_run(tmp_path: Path) -> None:
    one, other = made(tmp_path, name="support"), made(tmp_path, seed=2)
    time.sleep(0.02)
    one.log("used again")
    for word in ("support", one.dir.name, one.digest, one.digest[:4], str(one.dir), "last"):
        assert find_run(tmp_path, word).dir == one.dir, word
    assert find_run(tmp_path, other.name).dir == other.dir


def test_last_is_the_last_that_trained(tmp_path: Path) -> None:
    trained, other = made(tmp_path, seed=1), made(tmp_path, seed=2)
    assert find_run(tmp_path, "last").dir in (trained.dir, other.dir)
    (tmp_path / "store" / "train-0123456789ab").mkdir(parents=True)
    trained.link("train", tmp_path / "store" / "train-0123456789ab")
    time.sleep(0.02)
    other.log("a look at its data")
    assert find_run(tmp_path, "last").dir == trained.dir
    other.link("train", tmp_path / "store" / "train-0123456789ab")
    time.sleep(0.02)
    trained.log("answers to questions")
    assert find_run(tmp_path, "last").dir == other.dir


def test_ambiguity_lists_the_candidates_and_what_tells_them_apart(tmp_path: Path) -> None:
    made(tmp_path, name="support")
    made(tmp_path, name="support", algo=Algo(optim=Optim(lr=1e-4)))
    with pytest.raises(ConfigError, match="support means 2 runs") as error:
        find_run(tmp_path, "support")
    assert "algo.optim.lr=0.0001" in str(error.value)
    assert "algo.optim.lr=0.0002" in str(error.value)
    with pytest.raises(ConfigError, match=r"suport is no run.*Did you mean support\?"):
        find_run(tmp_path, "suport")
    with pytest.raises(ConfigError, match="There are none"):
        find_run(tmp_path / "empty", "last")


def test_a_new_name_for_the_same_config_renames(tmp_path: Path) -> None:
    first = made(tmp_path, name="draft", note="hello", tags=("a",))
    again = made(tmp_path, name="support")
    assert again.digest == first.digest
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [again.dir.name]
    plain = made(tmp_path)  # without a name it is the same run, and keeps what it is called
    assert plain.dir == again.dir
    assert (plain.config().name, plain.config().note, plain.config().tags) == ("support", "hello", ("a",))


def test_labels_are_neutral(tmp_path: Path) -> None:
    plain = config(tmp_path)
    assert run_digest(plain) == run_digest(
        replace(plain, name="x", note="y", tags=("z",), merge=replace(plain.merge, when="always"))
    )


def test_fields_that_differ(tmp_path: Path) -> None:
    runs = [made(tmp_path, seed=seed, name=f"n{seed}") for seed in (1, 2)]
    assert differing_fields(runs) == {"seed": [1, 2]}


def test_rename_from_the_command_line(tuner: Tuner, finished: Path, words: list[str], tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    shutil.copytree(finished, root, symlinks=True)
    (before,) = (root / "runs").iterdir()
    assert (
        "support-"
        in tuner("rename", "last", "support", "note=客服 v1", "tags=[week1,zh]", f"root={root}").out
    )
    assert not before.exists()
    (row,) = json.loads(tuner("status", "--json", f"root={root}").out)["runs"]
    assert (row["name"], row["note"], row["tags"]) == ("support", "客服 v1", ["week1", "zh"])
    tuner("plan", "--check", f"root={root}", *words)
    assert "support-" in tuner("plan", f"root={root}", *words).out
    # the command or recipe that made it may still have the name of then; a third name is a new wish
    tuner("rename", "support", "kept", f"root={root}")
    assert "kept-" in tuner(f"root={root}", *words, "name=support", "until=fetch").out
    assert "kept-" in tuner(f"root={root}", *words, "until=fetch").out
    assert "third-" in tuner(f"root={root}", *words, "name=third", "until=fetch").out
    assert "third-" in tuner(f"root={root}", *words, "name=support", "until=fetch").out
    tuner("rename", "third", "support", f"root={root}")
    assert "support-" in tuner(f"root={root}", *words, "name=support", "until=fetch").out
    assert "rename takes" in tuner("rename", "support", "other", "machine.keep=3", f"root={root}", code=2).err
