"""The store: whole or not at all, and whatever is damaged is seen."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import environment
from tuner.errors import StoreError
from tuner.files import write_json
from tuner.store.artifacts import Store, key_of
from tuner.store.digests import canonical_json, content_digest, json_digest
from tuner.store.locks import lock_trouble

ORIGIN = {"stage": "train", "inputs": {}, "versions": {}, "sources": {}, "upstream": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.open()
    return made


def publish(store: Store, key: str, files: dict[str, bytes], journal: tuple[str, ...] = ()):
    out = store.begin(key, {"fingerprint": "f"}, resume=False)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return store.publish(
        key,
        {
            "stage": key.split("-")[0],
            "fingerprint": "f",
            "origin": ORIGIN,
            "upstream": {},
            "references": {},
            "facts": {},
            "made": time.time(),
        },
        journal,
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_does_not_depend_on_order(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(turned)
    assert json_digest(value) == json_digest(turned)


def test_digest_is_pinned() -> None:
    assert (
        json_digest(["train", {"b": 1, "a": 0.5}, "é"])
        == "80f4bc95049e269c9d46666136a076b9cbb28a2cc3cdce89d556a76c5bba7b91"
    )
    assert canonical_json({"b": [1.0, None, True], "a": "é"}) == '{"a":"é","b":[1.0,null,true]}'.encode()


def test_publish_and_find(store: Store) -> None:
    artifact = publish(store, "train-1", {"a.txt": b"one", "sub/b.txt": b"two", ".leftover": b"x"})
    assert sorted(artifact.manifest["files"]) == ["a.txt", "sub/b.txt"]
    assert store.damage(artifact, deep=True) is None
    assert not store.partial("train-1").exists()
    assert artifact.size() == 6


def test_journal_files_are_kept_but_not_content(store: Store) -> None:
    one = publish(store, "train-1", {"w": b"w", "metrics.jsonl": b"1"}, ("metrics.jsonl",))
    two = publish(store, "train-2", {"w": b"w", "metrics.jsonl": b"2"}, ("metrics.jsonl",))
    assert one.content == two.content
    assert one.content == content_digest({"w": one.manifest["files"]["w"]["sha256"]})


@pytest.mark.parametrize("kind", ["flipped", "flipped with the old mtime", "truncated", "missing"])
def test_damage_is_seen(store: Store, kind: str) -> None:
    artifact = publish(store, "train-1", {"w": b"0123456789"})
    path = artifact.path / "w"
    before = path.stat()
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(b"01234")
    else:
        path.write_bytes(b"0123X56789")
        if "mtime" in kind:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    problem = store.damage(artifact)
    assert problem
    assert "w" in problem


def test_a_touched_file_of_the_same_content_is_whole(store: Store) -> None:
    artifact = publish(store, "train-1", {"w": b"0123456789"})
    os.utime(artifact.path / "w")
    os.link(artifact.path / "w", store.root / "another-link")
    assert store.damage(artifact) is None


def test_a_broken_manifest_is_no_artifact(store: Store) -> None:
    artifact = publish(store, "train-1", {"w": b"1"})
    for text in ("", "{", "[]", "{}"):
        (artifact.path / "manifest.json").write_text(text)
        assert store.find("train-1") is None


def test_hashes_are_remembered_and_forgotten_with_the_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"a" * 1000)
    time.sleep(0.1)
    first = store.hashes.sha256(file)
    assert store.hashes.is_known(file)
    os.utime(file)
    assert not store.hashes.is_known(file)
    assert store.hashes.sha256(file) == first
    file.write_bytes(b"b" * 1000)
    assert store.hashes.sha256(file) != first


def test_a_partial_is_continued_only_from_the_same(store: Store) -> None:
    out = store.begin("train-1", {"fingerprint": "f", "upstream": {"tokenize": "a"}}, resume=True)
    (out / "step").write_text("1")
    assert (
        store.begin("train-1", {"fingerprint": "f", "upstream": {"tokenize": "a"}}, resume=True) / "step"
    ).exists()
    assert not (
        store.begin("train-1", {"fingerprint": "f", "upstream": {"tokenize": "b"}}, resume=True) / "step"
    ).exists()


def test_lock_names_its_holder_and_outlives_its_parent(store: Store) -> None:
    waited: list[str] = []
    with store.lock("train-1", waited.append) as fd:
        assert (store.holder("train-1") or "").endswith(f":{os.getpid()}")
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=(fd,))
    assert store.holder("train-1"), "the child still holds it"
    began = time.monotonic()
    with store.lock("train-1", waited.append):
        assert time.monotonic() - began > 0.5
    child.wait()
    assert len(waited) == 1
    assert store.holder("train-1") is None
    assert (store.root / ".locks" / "train-1").exists()


def test_one_at_a_time(store: Store) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with Store(store.root).lock("k-1", lambda _: None):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_trash_keeps_what_was_replaced(store: Store) -> None:
    publish(store, "train-1", {"w": b"1"})
    publish(store, "train-1", {"w": b"2"})
    assert (store.root / "train-1" / "w").read_bytes() == b"2"
    (old,) = (store.root / ".trash").iterdir()
    assert (old / "w").read_bytes() == b"1"


def test_an_unwritable_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="can't be written to"):
        Store(tmp_path / "file" / "store").open()


@pytest.mark.parametrize(
    ("answer", "says"), [("return errno = ENOLCK, -1;", "has no locks"), ("return 0;", "Locks do nothing")]
)
def test_a_file_system_without_locks_is_refused(
    words: list[str], tmp_path: Path, answer: str, says: str
) -> None:
    """A C library in front of libc's plays the file system: flock fails, or does nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "no.c").write_text(f"#include <errno.h>\nint flock(int fd, int op) {{ {answer} }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "no.so", tmp_path / "no.c"], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tuner", f"root={tmp_path}/out", *words],
        env=environment({"LD_PRELOAD": str(tmp_path / "no.so")}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert not list((tmp_path / "out" / "store").glob("[!.]*"))


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw,relatime - proc proc rw
40 22 0:50 / /home rw,relatime shared:2 - nfs4 filer:/home rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
41 22 0:51 / /old rw,relatime - nfs filer:/old rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
42 22 0:52 / /win\\040share\\134x rw - nfs filer:/win rw,vers=3,local_lock=flock
43 40 254:1 / /home/scratch rw - xfs /dev/vdb rw
44 22 0:53 / /posix rw - nfs filer:/posix rw,vers=3,local_lock=posix
45 22 0:54 / /lustre rw - lustre mds@tcp:/l rw,flock,lazystatfs
46 22 0:55 / /lustre/local rw - lustre mds@tcp:/l rw,localflock
47 22 0:56 / /ssh rw - fuse.sshfs me@host: rw,user_id=0
48 22 0:57 / /smb rw - cifs //server/share rw,vers=3.1.1,nobrl
49 22 0:58 / /smb2 rw - cifs //server/share rw,vers=3.1.1
50 22 0:59 / /vm rw - 9p share rw,sync,dirsync,trans=virtio
51 22 0:60 / /mnt/c rw,noatime - 9p C:\\134 rw,aname=drvfs;path=C:\\134;uid=1000,trans=virtio
52 22 0:61 / /sandbox rw - 9p none rw,trans=fd,rfdno=4,wfdno=4
53 22 0:62 / /over rw - nfs filer:/over rw,local_lock=all
54 22 254:2 / /over rw - ext4 /dev/vdc rw
55 22 0:63 / /bucket rw - fuse.s3fs s3fs rw
"""


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/data", None),
        ("/home/me/outputs", None),
        ("/home/scratch/outputs", None),
        ("/old/outputs", r"/old \(nfs\) is mounted with local_lock=all, .*without nolock, .*store=DIR"),
        ("/win share\\x/outputs", r"is mounted with local_lock=flock"),
        ("/win", None),
        ("/older", None),
        ("/posix", None),
        ("/lustre/me", None),
        ("/lustre/local", r"with localflock, .* Have it mounted with the option flock, or put the store"),
        (
            "/ssh/outputs",
            (
                r"/ssh \(fuse\.sshfs\) is sshfs, so locks there hold on this machine only: .* Put the store"
                r" on a local disk"
            ),
        ),
        ("/smb", "nobrl"),
        ("/smb2", None),
        ("/vm/outputs", r"trans=virtio"),
        ("/mnt/c/outputs", None),
        ("/sandbox", None),
        ("/over/outputs", None),
        ("/bucket", "s3fs"),
    ],
)
def test_locks_that_hold_on_one_machine_only_are_known_by_the_mount(path: str, says: str | None) -> None:
    trouble = lock_trouble(MOUNTS, Path(path))
    assert trouble is None if says is None else re.search(says, trouble or "")


def test_the_mounts_of_this_machine_can_be_read(tmp_path: Path) -> None:
    assert lock_trouble(Path("/proc/self/mountinfo").read_text(encoding="utf-8"), tmp_path) is None
    assert lock_trouble("", tmp_path) is None
    assert lock_trouble("\n1 2 3\n- \n", tmp_path) is None


def test_a_store_whose_locks_hold_on_one_machine_only_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tuner.store.artifacts.locks.lock_trouble",
        lambda _, path: lock_trouble(f"1 2 0:1 / {path.parent} rw - nfs x rw,nolock", path),
    )
    with pytest.raises(StoreError, match="is mounted with nolock"):
        Store(tmp_path / "store").open()
    assert not (tmp_path / "store").exists()


def test_a_reader_waits_for_whoever_builds(store: Store) -> None:
    began = time.monotonic()
    with store.lock("train-1", lambda _: None) as fd:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.7)"], pass_fds=(fd,))
    with store.shared(["train-1", "train-2"]) as fds:
        assert time.monotonic() - began > 0.5
        assert len(fds) == 2
        with store.lock_at_once("train-1") as free:
            assert not free
        with store.shared(["train-1"]):
            pass
    child.wait()
    with store.lock_at_once("train-1") as free:
        assert free


def test_the_key_of_what_lies_in_the_store() -> None:
    names = (
        "train-1",
        "train-1.json",
        "train-1-u1000",
        "train-1-u1000.json",
        ".train-1.json.77",
        "train-1.reads-x1",
    )
    assert {key_of(name) for name in names} == {"train-1"}


def test_flock_here_is_real(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    with file.open() as one, file.open() as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_write_json_is_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"é": 1})
    assert (tmp_path / "a" / "x.json").read_text(encoding="utf-8") == '{"é": 1}'
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]
