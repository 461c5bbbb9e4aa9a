"""What is removed is what no run refers to, what is said to be freed is freed, and status knows it before."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import Tuner, environment
from tests.store.test_artifacts import publish
from tuner.cli.cleanup import clean
from tuner.config.build import dump_config
from tuner.config.schema import Config, Data, Model
from tuner.errors import ConfigError, StoreError
from tuner.files import read_json, write_json
from tuner.pipeline.run import RunDirectory
from tuner.store import references
from tuner.store.artifacts import Store
from tuner.store.usage import DiskUsage, StoreUsage, file_links

KEYS = [f"train-{number:012x}" for number in range(8)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def store(root: Path) -> Store:
    made = Store(root / "store")
    made.open()
    return made


def config_in(root: Path) -> Config:
    return Config(root=str(root), model=Model(path="m"), data=Data(path="rows"))


def run_in(root: Path, name: str = "a-00000001") -> RunDirectory:
    run = RunDirectory(root / "runs" / name)
    run.dir.mkdir(parents=True)
    (run.dir / "config.yaml").write_text(yaml.dump(dump_config(config_in(root))), encoding="utf-8")
    return run


def artifacts(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.glob("[!.]*"))


def clean_all(root: Path, store: Store | None = None, *words: str, dry_run: bool = False) -> None:
    clean(
        Config(root=str(root), store=str(store.root) if store else None),
        list(words),
        dry_run=dry_run,
        spare_recent=False,
    )


def on_disk(path: Path) -> int:
    """Bytes, by another program's count."""
    done = subprocess.run(["du", "-s", "--block-size=1", path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def test_only_what_no_run_refers_to_goes(root: Path, store: Store) -> None:
    for key in KEYS[:3]:
        publish(store, key, {"w": b"1"})
    run_in(root).link("train", store.root / KEYS[0])
    run_in(root, "b-00000002").link("base", store.root / KEYS[1])  # a link of any name
    clean_all(root, dry_run=True)
    assert artifacts(store) == KEYS[:3]
    clean_all(root)
    assert artifacts(store) == KEYS[:2]
    assert not list((store.root / ".trash").iterdir())


def test_what_is_younger_than_a_day_stays(root: Path, store: Store) -> None:
    for key in KEYS[:2]:
        publish(store, key, {"w": b"1"})
    manifest = store.root / KEYS[0] / "manifest.json"
    write_json(manifest, {**(read_json(manifest) or {}), "made": time.time() - 25 * 3600})
    clean(Config(root=str(root)), [], dry_run=False, spare_recent=True)
    assert artifacts(store) == KEYS[1:2]


def test_other_things_in_the_store_directory_stay(root: Path, store: Store) -> None:
    (store.root / "my-notes").mkdir()
    (store.root / "README").write_text("whose store this is")
    (store.root / KEYS[0]).mkdir()  # an artifact without a manifest is rubbish
    clean_all(root)
    assert artifacts(store) == ["README", "my-notes"]


def test_a_stopped_training_stays_until_it_is_published_or_its_run_goes(
    root: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in KEYS[:3]:
        (store.begin(key, {"fingerprint": "f"}, resume=True) / "step").write_text("1")
    run = run_in(root)
    run.link("train", store.partial(KEYS[0]))
    with store.lock(KEYS[1], lambda _: None):
        clean_all(root)
    left = sorted(path.name for path in (store.root / ".partial").iterdir())
    assert left == [KEYS[0], f"{KEYS[0]}.json", KEYS[1], f"{KEYS[1]}.json"]
    assert store.begin(KEYS[0], {"fingerprint": "f"}, resume=True).joinpath("step").exists()
    clean_all(root, None, "a")
    clean_all(root)
    assert not list((store.root / ".partial").iterdir())


def test_what_another_left_half_made_goes_once_the_artifact_is_there(root: Path, store: Store) -> None:
    run_in(root).link("train", store.partial(KEYS[0]))
    publish(store, KEYS[0], {"w": b"1"})
    stale = store.root / ".partial" / f"{KEYS[0]}-u4711"
    stale.mkdir()
    clean_all(root)
    assert not stale.exists()
    assert artifacts(store) == KEYS[:1]


def test_a_run_that_is_being_built_is_not_removed(root: Path, store: Store) -> None:
    run = run_in(root)
    run.link("train", store.begin(KEYS[0], {}, resume=True))
    with (
        store.lock(KEYS[0], lambda _: None),
        pytest.raises(ConfigError, match=rf"a-00000001 is being built \(.*:{os.getpid()}\)"),
    ):
        clean_all(root, None, "last")
    assert run.dir.exists()
    clean_all(root, None, "last")
    assert not run.dir.exists()
    assert not list((store.root / ".refs").iterdir())


def test_a_child_keeps_what_it_reads_of_its_parent(root: Path, store: Store) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    parent, child = run_in(root), run_in(root, "child-00000002")
    parent.link("train", store.root / KEYS[0])
    child.link("base", store.root / KEYS[0])
    clean_all(root, None, parent.dir.name)
    clean_all(root)
    assert artifacts(store) == KEYS[:1]


def test_what_is_in_use_is_spared(root: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    with store.shared(KEYS[:1]):
        assert store.holder(KEYS[0]) is None  # readers are no builders
        clean_all(root)
        assert f"{KEYS[0]:<44} in use, spared" in capsys.readouterr().out
        waiter = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(store.root), KEYS[0]],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "runs that read it\n"
        time.sleep(0.3)
        assert waiter.poll() is None
    waiter.communicate()
    assert waiter.returncode == 0
    clean_all(root)
    assert artifacts(store) == []


WAITER = """
import sys
from pathlib import Path
from tuner.store.artifacts import Store
with Store(Path(sys.argv[1])).lock(sys.argv[2], lambda who: print(who, flush=True)):
    pass
"""


# Notes: runs that are not under the root at hand.


def test_runs_of_other_roots_count(root: Path, store: Store, tmp_path: Path) -> None:
    for key in KEYS[:3]:
        publish(store, key, {"w": b"1"})
    other = run_in(tmp_path / "elsewhere")
    other.link("tokenize", store.root / KEYS[0])
    other.link("train", store.root / KEYS[1])
    other.link("tokenize", store.root / KEYS[2])  # what is not linked any more counts no longer
    clean_all(root)
    assert artifacts(store) == KEYS[1:3]
    shutil.rmtree(other.dir)
    clean_all(root)
    assert artifacts(store) == []
    assert not list((store.root / ".refs").iterdir())


def test_a_note_of_another_host_counts_and_is_told(
    root: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    run = run_in(tmp_path / "elsewhere")
    run.link("train", store.root / KEYS[0])
    (file,) = (store.root / ".refs").iterdir()
    write_json(file, {**(read_json(file) or {}), "host": "another"})
    shutil.rmtree(run.dir)
    clean_all(root)
    assert artifacts(store) == KEYS[:1]
    assert f"kept what another:{run.dir} refers to" in capsys.readouterr().out
    file.unlink()
    clean_all(root)
    assert artifacts(store) == []


def test_another_users_root_that_is_not_mounted_counts(
    root: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    run = run_in(tmp_path / "elsewhere")
    run.link("train", store.root / KEYS[0])
    shutil.rmtree(tmp_path / "elsewhere")
    monkeypatch.setattr(references, "foreign_owner", lambda _: "alice")
    assert references.referenced(store, root) == {KEYS[0]: [run.dir]}
    (tmp_path / "elsewhere" / "runs").mkdir(parents=True)  # the root is there, and the run is not in it
    assert references.referenced(store, root) == {}


@pytest.mark.parametrize("how", ["moved", "copied", "moved to another host"])
def test_a_root_with_its_store_goes_anywhere(root: Path, store: Store, tmp_path: Path, how: str) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    run_in(root).link("train", store.root / KEYS[0])
    if how == "copied":
        shutil.copytree(root, tmp_path / "new", symlinks=True)
    else:
        root.rename(tmp_path / "new")
    new = tmp_path / "new"
    if "host" in how:
        (file,) = (new / "store" / ".refs").iterdir()
        write_json(file, {**(read_json(file) or {}), "host": "another"})
    clean_all(new)
    assert artifacts(Store(new / "store")) == KEYS[:1]
    clean_all(new, None, "a")
    clean_all(new)
    assert artifacts(Store(new / "store")) == []


def test_a_renamed_run_is_noted_where_it_is(root: Path, store: Store, tmp_path: Path) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    run = run_in(tmp_path / "elsewhere")
    run.link("train", store.root / KEYS[0])
    run.rename("b-00000001", store)
    (file,) = (store.root / ".refs").iterdir()
    assert read_json(file) == {
        "run": str(run.dir),
        "host": socket.gethostname(),
        "user": run.dir.owner(),
        "keys": [KEYS[0]],
    }
    clean_all(root)
    assert artifacts(store) == KEYS[:1]


def test_nothing_goes_when_a_note_can_not_be_read(root: Path, store: Store) -> None:
    publish(store, KEYS[0], {"w": b"1"})
    (store.root / ".refs" / "x.json").write_text("{")
    with pytest.raises(StoreError, match=r"x\.json can't be read"):
        clean_all(root)
    assert artifacts(store) == KEYS[:1]


# Sizes.


def test_a_file_is_counted_once_and_frees_its_bytes_with_its_last_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.mkdir()
    (one / "w").write_bytes(b"x" * 1_000_000)
    os.link(one / "w", two / "w")
    os.link(one / "w", one / "again")
    usage = DiskUsage()
    small = usage.add(file_links(one))
    assert small == on_disk(one) - (one / "w").stat().st_blocks * 512
    assert small + usage.add(file_links(two)) == on_disk(tmp_path) - on_disk_of(tmp_path)
    assert usage.total() == on_disk(tmp_path) - on_disk_of(tmp_path)


def on_disk_of(path: Path) -> int:
    """Of a directory alone."""
    return path.stat().st_blocks * 512


def mixed(root: Path, store: Store) -> None:
    """Two runs with a part in common, hard links across artifacts, rubbish of each kind, and a name
    outside the store.
    """
    for number, key in enumerate(KEYS[:6]):
        publish(store, key, {"w": os.urandom(300_000 + 10_000 * number)})
    link(store, KEYS[0], KEYS[6])  # both stay
    link(store, KEYS[0], KEYS[7])  # only one stays: its bytes do not come back
    link(store, KEYS[4], "merge-00000000000a")  # both go: once
    os.link(store.root / KEYS[5] / "w", root / "kept by the person")
    publish(store, KEYS[3], {"w": os.urandom(200_000)})  # what it replaces is in the trash
    (store.begin("train-00000000000b", {}, resume=True) / "step").write_bytes(os.urandom(150_000))
    (store.begin("train-00000000000c", {}, resume=True) / "step").write_bytes(os.urandom(250_000))
    a, b = run_in(root), run_in(root, "b-00000002")
    for number, key in enumerate((KEYS[0], KEYS[1], KEYS[6])):
        a.link(f"a{number}", store.root / key)
    for number, path in enumerate(
        (store.root / KEYS[0], store.root / KEYS[2], store.partial("train-00000000000b"))
    ):
        b.link(f"b{number}", path)


def link(store: Store, source: str, key: str) -> None:
    out = store.begin(key, {}, resume=False)
    os.link(store.root / source / "w", out / "w")
    store.publish(key, dict((store.find(source) or pytest.fail(source)).manifest), ())


def test_what_is_said_to_be_freed_is_freed_and_status_knew_it(root: Path, store: Store, tuner: Tuner) -> None:
    mixed(root, store)
    before = on_disk(root)
    told = json.loads(tuner("status", "--json", f"root={root}").out)
    assert told["store_bytes"] == on_disk(store.root)
    assert told["clean_bytes"] == 0
    dry = tuner("clean", "--all", "--dry-run", f"root={root}").out
    assert on_disk(root) == before
    real = tuner("clean", "--all", f"root={root}").out
    freed = before - on_disk(root)
    assert freed > 1_000_000
    assert told["unreferenced_bytes"] == told["clean_all_bytes"] == freed
    assert f"would free {freed / 1e6:.1f} MB" in dry
    assert f"freed {freed / 1e6:.1f} MB" in real
    assert dry.replace("would free", "freed") == real
    assert artifacts(store) == [KEYS[0], KEYS[1], KEYS[2], KEYS[6]]
    after = json.loads(tuner("status", "--json", f"root={root}").out)
    assert (after["store_bytes"], after["unreferenced_bytes"]) == (on_disk(store.root), 0)


def test_a_runs_size_and_what_is_its_own_alone(root: Path, store: Store) -> None:
    mixed(root, store)
    places = {
        "a": [KEYS[0], KEYS[1], KEYS[6]],
        "b": [KEYS[0], KEYS[2], ".partial/train-00000000000b", ".partial/train-00000000000b.json"],
    }
    ledger = StoreUsage(store, root)
    for run, name in (("a-00000001", "a"), ("b-00000002", "b")):
        once = subprocess.run(
            ["du", "-sc", "--block-size=1", *(store.root / place for place in places[name])],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ledger.of(root / "runs" / run) == int(once.stdout.split()[-2])
    clean_all(root)
    own = ledger.own(root / "runs" / "b-00000002")
    clean_all(root, None, "b")
    before = on_disk(store.root)
    clean_all(root)
    assert own == before - on_disk(store.root)
    assert artifacts(store) == [KEYS[0], KEYS[1], KEYS[6]]


def test_status_shows_names_tags_and_sizes_under_each_other(root: Path, store: Store, tuner: Tuner) -> None:
    publish(store, KEYS[0], {"w": b"x" * 3_000_000})
    for name, tags in (("客服-00000001", ("一", "二")), ("support-00000002", ())):
        run = run_in(root, name)
        config = replace(config_in(root), tags=tags, note="第三次" if tags else None)
        (run.dir / "config.yaml").write_text(
            yaml.dump(dump_config(config), allow_unicode=True), encoding="utf-8"
        )
        run.link("tokenize", store.root / KEYS[0])
    out = tuner("status", f"root={root}").out.splitlines()
    assert [line.split()[0] for line in out[:3]] == ["run", "客服-00000001", "support-00000002"]
    ends = [wide(line[: line.index("MB")]) for line in out[1:3]]
    assert ends[0] == ends[1]
    assert "一,二" in out[1]
    assert "第三次" in out[1]
    assert "3.0 MB  " in out[1]
    assert " 0.0 MB" in out[1]
    assert f"store {store.root}: 3.0 MB, of which 0.0 MB no run refers to" in out[3]


def wide(text: str) -> int:
    """Places on a terminal."""
    return sum(2 if ord(char) > 0x2E80 else 1 for char in text)


def test_a_running_training_shows_its_step_and_loss(root: Path, words: list[str], tuner: Tuner) -> None:
    tuner(f"root={root}", *words, "until=tokenize")
    plan = json.loads(tuner("plan", "--json", f"root={root}", *words).out)
    key = next(f"train-{stage['fingerprint'][:12]}" for stage in plan["stages"] if stage["name"] == "train")
    store = Store(root / "store")
    (run,) = (root / "runs").iterdir()
    with store.lock(key, lambda _: None):
        out = store.begin(key, {"fingerprint": "f"}, resume=True)
        RunDirectory(run).link("train", out)
        (out / "metrics.jsonl").write_text(
            '{"step": 119, "loss": 3.0}\n{"step": 120, "loss": 2.5}\n{"step": 121, "lo'
        )
        (row,) = json.loads(tuner("status", "--json", f"root={root}").out)["runs"]
        assert (row["state"], row["step"], row["loss"]) == ("train running @step 120", 120, 2.5)
        assert "is being built" in tuner("clean", "last", f"root={root}", code=2).err


# Side by side.

WORK = """
import random, sys, time
from pathlib import Path
from tests.cli.test_clean import KEYS
from tests.store.test_artifacts import publish
from tuner.pipeline.run import RunDirectory
from tuner.store.artifacts import Store

root, store, until = Path(sys.argv[1]), Store(Path(sys.argv[2])), time.time() + float(sys.argv[3])
run = RunDirectory(root / "runs" / sys.argv[4])
run.dir.mkdir(parents=True)
print("ready", flush=True)
made = kept = 0
while time.time() < until:
    key = random.choice(KEYS)
    if store.find(key) is None:
        with store.lock(key, lambda _: None):
            if store.find(key) is None:
                publish(store, key, {"w": key.encode() * 1000, "sub/v": b"v"})
                made += 1
    with store.shared([key]):
        run.link("train", store.root / key)
        if store.find(key) is None:
            continue  # cleaned away before it was linked: build it again
    for _ in range(20):
        assert (run.dir / "train" / "w").read_bytes() == key.encode() * 1000
        assert store.damage(store.find(key), deep=True) is None
    kept += 1
print(made, kept)
"""


def test_a_clean_beside_running_builds_loses_nothing(
    root: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two builders, one of them under another root, link and let go of the same artifacts, while a third
    process cleans without a pause.
    """
    seconds = 4.0
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, place, store.root, str(seconds), f"r-{i}"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, place in enumerate((root, tmp_path / "elsewhere"))
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    cleaned = 0
    try:
        while any(worker.poll() is None for worker in workers):
            clean_all(root)
            cleaned += 1
    finally:
        counts = [[int(word) for word in worker.communicate()[0].split()] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert cleaned > 20, "too few cleans to have been in anybody's way"
    assert all(made > 5 and kept > 20 for made, kept in counts), counts
    assert len(artifacts(store)) <= 2


@pytest.mark.slow
def test_a_clean_beside_two_real_runs_loses_nothing(
    tuner: Tuner, words: list[str], finished: Path, tmp_path: Path
) -> None:
    """Two trainings that share their data and base, and a `clean --all` that never rests: both come to
    their end, with the usual bytes.
    """
    root = tmp_path / "outputs"
    runs = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tuner",
                *words,
                f"seed={seed}",
                "until=convert",
                f"name=s{seed}",
                f"root={root}",
            ],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for seed in (0, 1)
    ]
    cleans = 0
    while any(run.poll() is None for run in runs):
        tuner("clean", "--all", f"root={root}")
        cleans += 1
    assert [run.returncode for run in runs] == [0, 0]
    tuner("clean", "--all", f"root={root}")
    assert cleans > 5
    for directory in (root / "runs").iterdir():
        assert [link.name for link in directory.iterdir() if link.is_symlink() and not link.exists()] == []
    (undisturbed,) = (finished / "runs").glob("*/convert/adapter_model.safetensors")
    (beside,) = (root / "runs").glob("s0-*/convert/adapter_model.safetensors")
    assert beside.read_bytes() == undisturbed.read_bytes()


def test_compiled_kernels_are_told_of_and_removed_with_all(
    root: Path,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clean_all(root, store)
    assert "compiled" not in capsys.readouterr().out
    kernel = tmp_path / "cache" / "tuner" / "compiled" / "triton" / "kernel"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(bytes(3_000_000))
    config = Config(root=str(root), store=str(store.root))
    for all_, dry_run, there, said in (
        (False, False, True, "--all removes them"),
        (True, True, True, "--all removes them"),
        (True, False, False, "removed"),
    ):
        clean(config, [], dry_run=dry_run, spare_recent=not all_)
        out = capsys.readouterr().out
        assert f"3.0 MB in {kernel.parents[1]}" in out
        assert said in out
        assert kernel.exists() == there
