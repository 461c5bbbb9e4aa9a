"""Trouble of the system (permissions, limits, names, what others left in a shared store) through the command
line: one paragraph and exit code 2, or it goes on; never a traceback.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import ROWS, Tuner, environment, tiny_words, write_rows

ALLOWED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
"""before a command of root's: permissions hold for it too"""


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A model, rows, and the output root of a run until tokenize."""
    where = tmp_path_factory.mktemp("trouble")
    shutil.copytree(tiny_model, where / "model")
    write_rows(where / "rows.jsonl", ROWS)
    words = [*tiny_words(where / "model", where / "rows.jsonl"), f"root={where / 'out'}", "until=tokenize"]
    assert command(words).returncode == 0
    return where, words


def command(
    words: list[str], before: list[str] | None = None, limit: tuple[int, int] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*(before or []), sys.executable, "-m", "tuner", *words],
        env=environment(),
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
        preexec_fn=(lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))) if limit else None,
    )


@pytest.fixture
def closed() -> Iterator[Callable[[Path], None]]:
    """Takes all permissions from a file or directory, until the test ends."""
    if os.geteuid() == 0 and (
        not shutil.which("setpriv") or subprocess.run([*ALLOWED, "true"], check=False).returncode
    ):
        pytest.skip("needs setpriv, since permissions are nothing to root")
    before: dict[Path, int] = {}

    def close(path: Path) -> None:
        before[path] = path.stat().st_mode
        path.chmod(0)

    yield close
    for path, mode in reversed(before.items()):
        path.chmod(mode)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "model/config.json", "model/model.safetensors", "model/tokenizer.json", "model"]
)
def test_what_may_not_be_read(
    name: str, made: tuple[Path, list[str]], closed: Callable[[Path], None], tmp_path: Path
) -> None:
    where, words = made
    closed(where / name)
    for verb in ([], ["plan"]):
        done = command([*verb, *words, f"root={tmp_path}"], ALLOWED)
        assert done.returncode == 2, done.stderr
        assert f"{where / name}" in done.stderr
        assert "permissions" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["out", "out/store", "out/runs", "out/runs/*", "out/store/tokenize-*/train.arrow"]
)
def test_a_closed_part_of_an_output_root(
    name: str, made: tuple[Path, list[str]], closed: Callable[[Path], None]
) -> None:
    where, words = made
    (path,) = where.glob(name)
    closed(path)
    for verb in (
        words,
        ["plan", *words],
        ["status", f"root={where / 'out'}"],
        ["clean", f"root={where / 'out'}"],
    ):
        done = command(verb, ALLOWED)
        assert done.returncode in (0, 2), done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or "permissions" in done.stderr, done.stderr


def test_limits_of_a_process(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    _, words = made
    few = command([*words, f"root={tmp_path / 'few'}"], limit=(resource.RLIMIT_NOFILE, 12))
    assert few.returncode == 2, few.stderr
    assert "ulimit -n" in few.stderr
    small = command([*words, f"root={tmp_path / 'small'}"], limit=(resource.RLIMIT_FSIZE, 1000))
    assert small.returncode == 2, small.stderr
    assert "ulimit -f" in small.stderr
    assert "Traceback" not in few.stderr + small.stderr


def test_names_that_no_file_system_takes(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    _, words = made
    long = command([*words, f"root={tmp_path}/{'r' * 300}"])
    assert long.returncode == 2
    assert "longer than the file system takes" in long.stderr
    strange = command([*words, os.fsdecode(b"data.path=r\xffws.jsonl")])
    assert strange.returncode == 2
    assert "no UTF-8" in strange.stderr
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / os.fsdecode(b"r\xffws.jsonl"), ROWS)
    inside = command(["plan", *words, f"data.path={tmp_path / 'rows'}"])
    assert inside.returncode == 2
    assert "no UTF-8. Rename it." in inside.stderr
    assert "Traceback" not in long.stderr + strange.stderr


@pytest.mark.parametrize("part", ["note", "manifest", "config.yaml", "loop"])
def test_what_lies_damaged_in_an_output_root(
    part: str, made: tuple[Path, list[str]], tuner: Tuner, tmp_path: Path
) -> None:
    where, words = made
    out = shutil.copytree(where / "out", tmp_path / "out", symlinks=True)
    (note,), (run,) = (out / "store/.refs").glob("*.json"), (out / "runs").iterdir()
    (manifest,) = (out / "store").glob("tokenize-*/manifest.json")
    told = json.loads(note.read_bytes())
    harm = {
        "note": [(note, json.dumps({**told, "run": wrong}).encode()) for wrong in (None, 5, "\0")],
        "manifest": [(manifest, b'{"files": 5}'), (manifest, b"[" * 9999), (manifest, b"\xff")],
        "config.yaml": [(run / "config.yaml", b"\xff\xfe"), (run / "config.yaml", b"a: [1")],
        "loop": [],
    }
    if part == "loop":
        (out / "runs" / "loop").symlink_to("loop")
        harm["loop"] = [(out / "runs" / "log", b"")]
    for file, text in harm[part]:
        file.write_bytes(text)
        for verb in (["status"], ["clean"], words):
            done = tuner(*verb, f"root={out}", code=None)
            assert done.code in (0, 2), done.err
            assert "Traceback" not in done.err


AS_ANOTHER = """
import os, sys
from tuner.cli.main import main
main(["clean", "--dry-run", sys.argv[1]])  # all is imported before this Python is closed to us
os.setuid(65534)
sys.exit(main(["clean", sys.argv[1]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_note_of_another_user_that_cannot_be_read_keeps_nobody_from_cleaning(
    made: tuple[Path, list[str]],
) -> None:
    with TemporaryDirectory() as place:  # pytest's own are closed to others
        Path(place).chmod(0o755)
        out = shutil.copytree(made[0] / "out", Path(place) / "out", symlinks=True)
        note = out / "store" / ".refs" / f"{'0' * 32}.json"
        for path in [out, *out.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)
        words = [sys.executable, "-c", AS_ANOTHER, f"root={out}"]
        clean = partial(subprocess.run, env=environment(), capture_output=True, text=True, check=False)
        done = clean(words)
        assert done.returncode == 0, done.stderr
        assert "can't be read" not in done.stdout
        note.write_text("[]", encoding="utf-8")  # of root's
        done = clean(words)
        assert f"{note} of root can't be read" in done.stdout, done.stderr
        assert done.returncode == 0, done.stderr
