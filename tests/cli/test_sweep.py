"""A sweep through the front door: what it says before, what stands at its end, and what `status --sweep` says
of it later.
"""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import Done, Tuner
from tests.hardware.smi import A, B, C, nvidia_smi
from tuner.errors import ConfigError
from tuner.pipeline.find_run import find_run
from tuner.pipeline.sweeps import find_sweep


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


def sweep(tuner: Tuner, *words: str, code: int = 0) -> Done:
    return tuner("-m", *words, "seed=0,1,1.5", code=code)


def test_a_sweep_ends_with_a_ranking(tuner: Tuner, root: Path, words: list[str], tmp_path: Path) -> None:
    """Of three jobs one is done, one is to do, and one is refused."""
    planned = json.loads(tuner("plan", "-m", "--json", *words, "seed=0,1,1.5", code=2).out)
    assert [[*job][:2] for job in planned["jobs"]] == [["job", "run"], ["job", "run"], ["job", "error"]]
    assert planned["in_all"]["tokens"] > 0
    assert not (root / "sweeps").exists()

    done = sweep(tuner, *words, code=2)
    front = done.err.split("──")[0]
    assert re.search(r"^ +1 +0 +done +done +done +done$", front, re.MULTILINE)
    assert re.search(r"^ +2 +1 +run +run +- +run$", front, re.MULTILINE)
    assert re.search(r"^ +3 +1.5 +refused$", front, re.MULTILINE)
    assert re.search(r"^  [\d,]+ tokens, .*of disk$", front, re.MULTILINE)
    assert re.search(r"^── job 2 of 3: seed=1: done in \d+ s, held-out loss \d", done.err, re.MULTILINE)
    assert "job 1 of 3" not in done.err

    lines = done.out.splitlines()
    assert re.fullmatch(r"sweep seed-[0-9a-f]{8}: 2 of 3 jobs done, 1 failed", lines[0])
    assert lines[1].split()[0] == "seed"
    said = dict(re.findall(r"^(best|use|page|table) +(.*)$", done.out, re.MULTILINE))
    assert re.search(r"^failed: seed=1\.5: .*\.$", done.out, re.MULTILINE)
    rows = list(csv.DictReader((tmp_path / said["table"]).read_text(encoding="utf-8").splitlines()))
    runs = {row["seed"]: row for row in rows}
    assert [row["rank"] for row in rows] == ["1", "2", ""]
    for seed in "01":
        facts = json.loads((root / "runs" / runs[seed]["run"] / "evaluate" / "manifest.json").read_text())[
            "facts"
        ]
        assert float(runs[seed]["held_out_loss"]) == facts["loss"]
    assert rows[0]["run"] == said["best"]
    assert rows[0]["run"] in (tmp_path / said["page"]).read_text(encoding="utf-8")

    # the line that uses the best is the one to type
    assert said["use"].split()[:4] == ["python", "-m", "tuner", "chat"]
    assert find_run(root, said["best"]).dir.name == said["best"]

    again = sweep(tuner, *words, code=2)
    assert again.out == done.out
    assert "done in" not in again.err
    single = tuner("status", "--sweep").out
    assert single == tuner("status", "--sweep", "seed").out
    assert done.out.startswith(single)
    told = json.loads(tuner("status", "--sweep", "--json").out)
    assert told["best"] == said["best"]
    assert [row["run"] for row in told["jobs"]] == [row["run"] or None for row in rows]
    assert {path.name for path in (root / "sweeps").iterdir()} == {told["sweep"]}

    # a run that goes, or has another name, costs the sweep nothing but itself
    tuner("rename", rows[1]["run"], "other")
    shutil.rmtree(root / "runs" / rows[0]["run"])
    left = json.loads(tuner("status", "--sweep", "--json").out)
    assert [row["run"] for row in left["jobs"]] == [f"other-{rows[1]['run'].rpartition('-')[2]}", None, None]
    with pytest.raises(ConfigError, match="is no sweep under"):
        find_sweep(root, "sed")


IDLE = "".join(
    f"{i}, {uuid}, NVIDIA A100-SXM4-80GB, 81920, {used}, 580.95.05, Disabled\n"
    for i, (uuid, used) in enumerate(((A, 0), (B, 0), (C, 70000)))
)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch would look for these GPUs")
def test_gpus_that_a_sweep_leaves_idle_are_named(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    """With the words that use them; those are not told twice. This torch can't, which each job says."""
    path = f"{nvidia_smi(tmp_path / 'bin', IDLE)}{os.pathsep}{os.environ['PATH']}"
    sweep_words = ["-m", *words, "machine=auto", "seed=1,2,3"]
    line = tuner(*sweep_words, env={"PATH": path}, code=2).err
    (hint,) = re.findall(r"^2 GPUs are idle, .* with (.*)$", line, re.MULTILINE)
    assert hint == "hydra/launcher=joblib hydra.launcher.n_jobs=2"
    for more in (hint.split(), ["machine.gpus=2"], ["machine=cpu", "until=tokenize"]):
        assert " idle, " not in tuner(*sweep_words, *more, env={"PATH": path}, code=None).err


def test_what_fails_alike_is_explained_once(tuner: Tuner, words: list[str]) -> None:
    """Here for a file that is not there."""
    done = tuner("-m", *words, "data.path=nowhere.jsonl", "seed=0,1,2", code=2)
    assert done.err.count("tuner: ") == 1
    assert done.err.count(": failed, for the same reason") == 2
    assert done.out.count("failed: seed=") == 3  # in the summary each has its line


def test_all_jobs_refused(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    done = tuner("-m", *words, "algo.r=-1,-2", code=2)
    assert done.out.splitlines()[0] == "sweep: 0 of 2 jobs done"
    assert done.out.count("failed: algo.r=-") == 2
    assert not (tmp_path / "outputs").exists()
