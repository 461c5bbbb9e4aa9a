"""The lock file: what is written is found again, however many write; what is no lock is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import environment
from tuner.errors import ConfigError
from tuner.hub import lockfile
from tuner.hub.lockfile import Pin, Pinned

SHA, BLOB = "0a" * 32, "1b" * 20
PIN = Pin(
    commit="c" * 40,
    files={"b.json": Pinned(size=3, blob=BLOB), "a.safetensors": Pinned(size=9, sha256=SHA, revision="v1")},
    layout="internlm2",
)
NAME = "model hub org/name@main"

hexes = st.text("0123456789abcdef", min_size=40, max_size=40)
files = st.builds(
    Pinned,
    size=st.none() | st.integers(0, 1 << 50),
    sha256=st.none() | st.just(SHA),
    blob=st.none() | hexes,
    revision=st.none() | st.just("v1"),
)
entries = st.builds(
    Pin,
    commit=hexes,
    files=st.dictionaries(st.text(min_size=1), files, max_size=3),
    layout=st.none() | st.just("qwen"),
    made=st.dictionaries(hexes, hexes, max_size=2),
)


@settings(
    derandomize=True,
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.text(min_size=1), entries, min_size=1, max_size=3))
def test_what_is_written_is_found_again_with_its_files_in_order(
    tmp_path: Path, written: dict[str, Pin]
) -> None:
    lock = tmp_path / "tuner.lock"
    lock.unlink(missing_ok=True)
    for name, pin in written.items():
        lockfile.write_pin(lock, name, pin)
    for name, pin in written.items():
        found = lockfile.find_pin(lock, name)
        assert found == pin
        assert found is not None
        assert list(found.files) == list(pin.files)


def test_the_file_is_sorted_and_has_a_line_for_each_value(tmp_path: Path) -> None:
    for lock, names in (
        (tmp_path / "1" / "tuner.lock", ("b", "a", "c")),
        (tmp_path / "2" / "tuner.lock", ("c", "b", "a")),
    ):
        for name in names:
            lockfile.write_pin(lock, name, PIN)
    first, second = ((tmp_path / folder / "tuner.lock").read_text() for folder in "12")
    assert first == second
    assert first.endswith("}\n")
    assert list(json.loads(first)["pins"]) == ["a", "b", "c"]
    assert f'"commit": "{PIN.commit}",\n' in first


def test_a_lock_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert lockfile.find_pin(tmp_path / "tuner.lock", NAME) is None
    lockfile.write_pin(tmp_path / "tuner.lock", NAME, PIN)
    assert lockfile.find_pin(tmp_path / "tuner.lock", "model hub org/other@main") is None


def test_who_was_first_is_right(tmp_path: Path) -> None:
    other = Pin(commit="d" * 40, files={})
    assert lockfile.add_pin(tmp_path / "tuner.lock", NAME, PIN) == PIN
    assert lockfile.add_pin(tmp_path / "tuner.lock", NAME, other) == PIN
    assert lockfile.find_pin(tmp_path / "tuner.lock", NAME) == PIN
    lockfile.write_pin(tmp_path / "tuner.lock", NAME, other)
    assert lockfile.find_pin(tmp_path / "tuner.lock", NAME) == other


def test_many_processes_lose_no_entry(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tuner.hub.lockfile import *\nfor i in range(20): "
        "add_pin(Path('tuner.lock'), f'{sys.argv[1]}-{i}', Pin(commit='c', files={}))"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], cwd=tmp_path, env=environment())
        for number in range(4)
    ]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert len(json.loads((tmp_path / "tuner.lock").read_text())["pins"]) == 80
    left = [path.name for path in tmp_path.glob(".tuner.lock.*") if not path.name.endswith("flock")]
    assert left == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "can't be read as a lock file"),
        ("<<<<<<< HEAD", "Take it from version control again, or remove it"),
        ("[" * 100_000, "can't be read as a lock file"),
        ("[]", "is not a lock file of tuner"),
        ('{"version": 1}', "should hold `pins`"),
        ('{"version": 2, "pins": {}}', "has version 2, and this tuner reads 1"),
    ],
)
def test_what_is_no_lock_is_said(tmp_path: Path, content: str, why: str) -> None:
    lock = tmp_path / "tuner.lock"
    lock.write_text(content)
    with pytest.raises(ConfigError, match=why) as caught:
        lockfile.find_pin(lock, NAME)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=why):
        lockfile.write_pin(lock, NAME, PIN)
    assert lock.read_text() == content


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "x",
        {},
        {"commit": "c"},
        {"commit": 7, "files": {}},
        {"commit": "c", "files": []},
        {"commit": "c", "files": {}, "layout": 7},
        {"commit": "c", "files": {}, "made": {"a": 1}},
        {"commit": "c", "files": {"a": {"size": -1}}},
        {"commit": "c", "files": {"a": {"size": "1"}}},
        {"commit": "c", "files": {"a": {"size": True}}},
        {"commit": "c", "files": {"a": {"sha256": "../../x"}}},
        {"commit": "c", "files": {"a": {"blob": 7}}},
        {"commit": "c", "files": {"a": {"url": "http://elsewhere"}}},
        {"commit": "c", "files": {"a": None}},
    ],
)
def test_an_entry_that_is_none_is_said_with_what_to_do(tmp_path: Path, entry: Any) -> None:
    lock = tmp_path / "tuner.lock"
    lock.write_text(json.dumps({"version": 1, "pins": {NAME: entry}}))
    if entry is None:
        assert lockfile.find_pin(lock, NAME) is None
        return
    with pytest.raises(
        ConfigError,
        match=rf"the entry '{NAME}' can't be read .*Remove it, and the next run looks it up again",
    ):
        lockfile.find_pin(lock, NAME)


def test_a_key_says_what_was_asked_for() -> None:
    keys = {
        lockfile.entry_name(kind, source, "org/name", revision, patterns)
        for kind in ("model", "data")
        for source in ("hub", "modelscope")
        for revision in ("v1", "v2")
        for patterns in ((), ("a*",), ("a*", "b"))
    }
    assert len(keys) == 24
    assert lockfile.entry_name("model", "hub", "org/name", None) == lockfile.entry_name(
        "model", "hub", "org/name", "main"
    )
    assert lockfile.entry_name("model", "modelscope", "org/name", None) == lockfile.entry_name(
        "model", "modelscope", "org/name", "master"
    )


def test_a_commit_enters_under_a_name_without_the_branch() -> None:
    at = {
        name: Pin(commit=name[-1], files={})
        for name in ("data hub o/n@main a", "data hub o/n@v1 a", "data hub o/n@main b")
    }
    assert lockfile.pinned_commits(at) == {"hub o/n a": "a", "hub o/n a 1": "a", "hub o/n b": "b"}
    assert lockfile.pinned_commits({"data hub o/n@main": None}) == {}
