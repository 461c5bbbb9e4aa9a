"""Two users of one group on one store: each uses what the other made, and can't break it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, ROWS, Done, environment, states, tiny_words, write_rows
from tuner.files import group_of
from tuner.store.artifacts import FOLDERS, Store

ALICE, BOB, LAB = 12001, 12002, 12000

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="needs root, to be two other users",
)

As = Callable[..., Done]


@pytest.fixture
def lab() -> Iterator[Path]:
    """A directory that everybody reaches, with a home for each user that nobody else may enter."""
    with tempfile.TemporaryDirectory(prefix="tuner-lab-") as name:
        path = Path(name)
        path.chmod(0o755)
        for uid in (ALICE, BOB):
            home = path / str(uid)
            home.mkdir(mode=0o700)
            os.chown(home, uid, LAB)
        yield path


def shared(path: Path, owner: int = 0, mode: int = 0o2770) -> Path:
    """A directory as an admin makes it: chgrp lab, chmod 2770."""
    path.mkdir()
    os.chown(path, owner, LAB)
    path.chmod(mode)
    return path


@pytest.fixture
def store(lab: Path) -> Path:
    return shared(lab / "store")


@pytest.fixture
def user(lab: Path) -> As:
    """Run Python as a user whose umask lets nobody else in: `-m tuner` with words, or code."""
    reach = _reach(lab)

    def call(uid: int, *words: str, code: int | None = 0, run: str | None = None) -> Done:
        python = [sys.executable, "-c", run, *words] if run else [sys.executable, "-m", "tuner", *words]
        command = [
            *reach,
            "setpriv",
            f"--reuid={uid}",
            f"--regid={LAB}",
            "--clear-groups",
            "sh",
            "-c",
            'umask 077; exec "$@"',
            "sh",
            *python,
        ]
        env = environment({"HOME": str(lab / str(uid)), "PYTHONDONTWRITEBYTECODE": "1"})
        done = subprocess.run(
            command, cwd=lab / str(uid), env=env, capture_output=True, text=True, timeout=300, check=False
        )
        if code is not None:
            assert done.returncode == code, (
                f"{uid} {words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


def _reach(lab: Path) -> list[str]:
    """A prefix to a command that lets other users reach this Python and this checkout.

    Where a directory on the way is closed (Python under /root), the command gets file systems of its own, in
    which an empty directory stands in for the closed one, with nothing in it but what is needed.
    """
    wanted = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), REPO.resolve()}
    lines = ["set -e"]
    for place in sorted(wanted):
        closed = next(
            (
                parent
                for parent in [*reversed(place.parents), place]
                if not parent.stat().st_mode & stat.S_IXOTH
            ),
            None,
        )
        if closed is not None:
            held = lab / f"held-{len(lines)}"
            held.mkdir()
            lines += [
                f"mount --bind '{place}' '{held}'",
                f"mount -t tmpfs -o mode=755 tmpfs '{closed}'",
                f"mkdir -p '{place}'",
                f"mount --bind '{held}' '{place}'",
            ]
    if len(lines) == 1:
        return []
    prefix = ["unshare", "--mount", "sh", "-c", "\n".join([*lines, 'exec "$@"']), "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("other users can't be let in to this Python")
    return prefix


@pytest.mark.slow
def test_each_uses_what_the_other_made_and_neither_can_break_it(
    lab: Path, store: Path, user: As, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, lab / "model")
    write_rows(lab / "rows.jsonl", ROWS)
    for path in [lab / "model", *(lab / "model").iterdir(), lab / "rows.jsonl"]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    words = [*tiny_words(lab / "model", lab / "rows.jsonl"), f"store={store}", "algo.steps=2", "until=train"]

    # Alice fetches and tokenizes, and is killed in training.
    user(ALICE, *words, "until=tokenize")
    plan = user(ALICE, "plan", "--json", *words)
    key = next(
        f"train-{stage['fingerprint'][:12]}"
        for stage in json.loads(plan.out)["stages"]
        if stage["name"] == "train"
    )
    user(ALICE, str(store), key, run=LEAVE)
    assert {path.name for path in (store / ".partial").iterdir()} == {key, f"{key}.json"}

    # Bob uses what she made, and trains in spite of what she left.
    plan = user(BOB, "plan", "--json", *words)
    assert states(plan) == {"fetch_data": "done", "fetch_model": "done", "tokenize": "done", "train": "run"}
    assert "train        done in" in user(BOB, *words).err
    assert (store / key).stat().st_uid == BOB
    assert {path.name for path in (store / ".partial").iterdir()} == {key, f"{key}.json"}
    assert user(ALICE, "plan", "--check", *words).code == 0
    user(ALICE, *words)
    _is_open_to_the_group_and_closed_to_writing(store)

    # Neither can break it.
    tokenize = next(store.glob("tokenize-*"))
    refused = json.loads(user(BOB, str(tokenize), str(store / ".partial" / key), run=BREAK).out)
    assert {how: error for how, error in refused.items() if error != "PermissionError"} == {}
    again = user(BOB, *words, "redo=tokenize", code=2).err
    assert (
        f"{tokenize.name} in the shared store {store} belongs to the user {ALICE}, and only they can "
        "replace it" in again
    )
    assert "variant=NAME" in again
    user(BOB, "plan", "--check", *words)

    # Cleaning sees both users' runs, and takes what is one's own.
    everything = {path.name for path in store.glob("[!.]*")}
    for uid in (ALICE, BOB):
        user(uid, "clean", "--all", f"store={store}")
    assert {path.name for path in store.glob("[!.]*")} == everything
    assert not list((store / ".partial").iterdir())  # Alice's: the artifact is there
    user(ALICE, "clean", "last", f"store={store}")
    user(ALICE, "clean", "--all", f"store={store}")
    user(BOB, "plan", "--check", *words)
    user(BOB, "clean", "last", f"store={store}")
    told = user(BOB, "clean", "--all", f"store={store}").out
    assert f"that belong to the user {ALICE}, who can clean them" in told
    assert {path.name for path in store.glob("[!.]*")} == everything - {key}
    user(ALICE, "clean", "--all", f"store={store}")
    assert not list(store.glob("[!.]*"))


LEAVE = """
import sys
from pathlib import Path
from tuner.store.artifacts import Store
store = Store(Path(sys.argv[1]))
store.open()
(store.begin(sys.argv[2], {"fingerprint": "f"}, resume=True) / "half").write_text("x")
"""

BREAK = """
import json, os, pathlib, shutil, sys, tempfile
artifact, partial = map(pathlib.Path, sys.argv[1:])
store = artifact.parent
note = next(path for path in (store / ".refs").iterdir() if path.stat().st_uid == artifact.stat().st_uid)
file = next(artifact.glob("*.arrow"))
ways = {
    "move it to the trash": lambda: os.rename(artifact, store / ".trash" / "x"),
    "take it home": lambda: os.rename(artifact, pathlib.Path.home() / "x"),
    "remove it": lambda: shutil.rmtree(artifact),
    "remove a file": lambda: os.unlink(file),
    "write a file": lambda: file.open("r+b"),
    "replace a file": lambda: os.replace(tempfile.mkstemp(dir=pathlib.Path.home())[1], file),
    "add a file": lambda: (artifact / "x").touch(),
    "open it to all": lambda: artifact.chmod(0o777),
    "move what she left": lambda: os.rename(partial, partial.with_name("x")),
    "remove what she left": lambda: shutil.rmtree(partial) if partial.exists() else os.unlink(note),
    "remove her note": lambda: os.unlink(note),
    "write her note": lambda: note.write_text("{}"),
    "remove a lock": lambda: os.unlink(store / ".locks" / artifact.name),
}
found = {}
for how, way in ways.items():
    try:
        way()
        found[how] = "done"
    except OSError as error:
        found[how] = type(error).__name__
print(json.dumps(found))
"""


def _is_open_to_the_group_and_closed_to_writing(store: Path) -> None:
    for folder in FOLDERS:
        assert stat.S_IMODE((store / folder).stat().st_mode) == 0o3770, folder
    for lock in (store / ".locks").iterdir():
        assert stat.S_IMODE(lock.stat().st_mode) == 0o660
    published = [path for artifact in store.glob("[!.]*") for path in [artifact, *artifact.rglob("*")]]
    assert len(published) > 10
    for path in published:
        mode = path.stat().st_mode
        assert mode & 0o022 == 0, path
        assert mode & 0o050 == (0o050 if path.is_dir() else 0o040), path
        assert path.stat().st_gid == LAB


def test_an_artifact_is_not_renamed_either_where_the_store_is_sticky(lab: Path, user: As) -> None:
    """A store that one of them made, and one whose admin gave it the sticky bit."""
    for store in (shared(lab / "hers", ALICE), shared(lab / "admin's", mode=0o3770)):
        assert user(ALICE, str(store), "train-000000000001", run=PUBLISH).out == "True\n"
        assert store.stat().st_mode & stat.S_ISVTX
        done = user(
            BOB,
            str(store / "train-000000000001"),
            run="import os, sys; os.rename(sys.argv[1], sys.argv[1] + 'x')",
            code=1,
        )
        assert "Operation not permitted" in done.err
        user(BOB, str(store), "train-000000000002", run=PUBLISH)  # and he can add to it


PUBLISH = """
import sys
from pathlib import Path
from tests.store.test_artifacts import publish
from tuner.store.artifacts import Store
store = Store(Path(sys.argv[1]))
store.open()
with store.lock(sys.argv[2], lambda _: None):
    publish(store, sys.argv[2], {"w": b"1", "sub/v": b"2"})
print(store.guarded())
"""


def test_each_waits_for_the_others_lock(store: Path, user: As) -> None:
    done = user(ALICE, str(store), run=LOCK)
    assert done.out.splitlines() == ["alone"]
    done = user(BOB, str(store), run=LOCK)
    assert done.out.splitlines() == ["alone"]
    (store / ".locks" / "train-000000000001").chmod(0o640)  # of Alice's, made by an older version
    assert user(BOB, str(store), run=LOCK).out.splitlines() == ["alone"]
    (store / ".locks" / "train-000000000001").chmod(0o600)
    done = user(BOB, str(store), run=LOCK, code=1)
    assert f"it belongs to the user {ALICE}, who keeps it from others" in done.err
    assert "chmod 660" in done.err


LOCK = """
import sys
from pathlib import Path
from tuner.store.artifacts import Store
store = Store(Path(sys.argv[1]))
store.open()
key = "train-000000000001"
with store.lock(key, lambda who: print("waiting for", who)), store.lock_at_once(key) as free:
    print("both" if free else "alone")
"""


def test_a_hash_that_another_remembered_is_not_trusted(lab: Path, store: Path, user: As) -> None:
    """Bob writes a false hash where Alice would look for hers."""
    rows = lab / "rows"
    rows.write_text("hello")
    rows.chmod(0o644)
    os.utime(rows, (1, 1))
    user(ALICE, str(store), str(rows), run=HASH)
    for memo in (store / ".hashes").iterdir():
        known = json.loads(memo.read_text())
        assert memo.stat().st_uid == ALICE
        memo.unlink()
        memo.write_text(json.dumps({**known, "sha256": "false"}))
        memo.chmod(0o644)
        os.chown(memo, BOB, LAB)
    assert user(ALICE, str(store), str(rows), run=HASH).out.split() == [
        "False",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    ]


HASH = """
import sys
from pathlib import Path
from tuner.store.artifacts import Store
store = Store(Path(sys.argv[1]))
store.open()
print(store.hashes.is_known(Path(sys.argv[2])), store.hashes.sha256(Path(sys.argv[2])))
"""


def test_a_store_of_ones_own_stays_ones_own(lab: Path, user: As) -> None:
    store = lab / str(ALICE) / "store"
    user(ALICE, str(store), "train-000000000001", run=PUBLISH)
    assert {stat.S_IMODE(path.stat().st_mode) for path in [store, *store.iterdir()]} == {0o700}
    assert group_of(store) is None


def test_a_folder_that_keeps_others_out_is_refused_in_words(store: Path, user: As) -> None:
    (store / ".partial").mkdir(mode=0o700)
    os.chown(store / ".partial", ALICE, LAB)
    done = user(BOB, str(store), run=LOCK, code=1)
    assert (
        f"the user {ALICE} keeps others out; they can fix it with: chmod 3770 ({store}/.partial)" in done.err
    )
    user(ALICE, str(store), run=LOCK)  # whoever made it mends it by using it
    user(BOB, str(store), run=LOCK)


def test_root_may_do_all(store: Path, user: As) -> None:
    # the admin gave the store no sticky bit
    assert user(ALICE, str(store), "train-000000000001", run=PUBLISH).out == "False\n"
    assert Store(store).trash("train-000000000001") is not None
    Store(store).open()
    assert Store(store).guarded()
