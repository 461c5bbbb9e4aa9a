"""A search through the front door: its space in front, its trials one after the other, their ranking, and the
same from Python.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

import tuner as from_python
from tests.conftest import Done, Tuner
from tuner.errors import ConfigError
from tuner.train.monitor.rows import read_rows

pytest.importorskip("optuna")

SPACE = ["-m", "hydra/sweeper=optuna", "algo.optim.lr=tag(log, interval(1e-6,1e-1))", "until=train"]
SETTINGS = ["hydra.sweeper.n_trials=2", "hydra.sweeper.pruner.n_startup_trials=1"]


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


def test_a_search(tuner: Tuner, root: Path, words: list[str], tmp_path: Path) -> None:
    """Of two trials the second is worse from its first step on."""
    line = [*SPACE, *words, *SETTINGS]
    planned = tuner("plan", "--check", *line, code=3).out.splitlines()
    assert re.fullmatch(r"search lr-[0-9a-f]{8}: 0 of 2 trials finished", planned[0])
    assert planned[1] == "  algo.optim.lr  1e-06 to 0.1, by the logarithm"
    assert re.fullmatch(r"  a trial: [\d,]+ tokens, .*", planned[3])
    assert not (root / "sweeps").exists()

    done = tuner(*line)
    assert done.err.splitlines()[: len(planned)] == planned
    titles = re.findall(r"^── (trial \d of 2): algo\.optim\.lr=(\S+?)(?:: (.*))?$", done.err, re.MULTILINE)
    assert [title for title, _, _ in titles] == ["trial 1 of 2"] * 2 + ["trial 2 of 2"] * 2
    assert titles[1][2].startswith("done in ")
    assert re.fullmatch(r"pruned at step \d, held-out loss \d\.\d{4}", titles[3][2])
    assert done.out.startswith(f"sweep {planned[0].split()[1][:-1]}: 1 of 2 jobs done, 1 pruned\n")
    assert "(pruned)" in done.out

    (place,) = (root / "sweeps").iterdir()
    rows = list(csv.DictReader((place / "ranking.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["rank"], row["state"], row["algo.optim.lr"]) for row in rows] == [
        ("1", "trained", titles[0][1]),
        ("", "pruned", titles[2][1]),
    ]
    steps = read_rows(root / "runs" / rows[0]["run"] / "train" / "metrics.jsonl")
    assert float(rows[0]["held_out_while_training"]) == steps[-1]["held_out"]
    assert rows[0]["run"] in (place / "ranking.html").read_text(encoding="utf-8")

    again = tuner(*line)
    assert again.out == done.out
    name = planned[0].split()[1]
    assert again.err.startswith(f"search {name} 2 of 2 trials finished, 1 of them pruned\n")
    assert "──" not in again.err
    assert done.out.startswith(tuner("status", "--sweep").out)
    told = json.loads(tuner("plan", "--json", "--check", *line).out)
    assert (told["left"], told["space"]["algo.optim.lr"]["high"]) == (0, 0.1)

    # another seed, or other rows of the same name: another search
    data = next(word for word in words if word.startswith("data.path=")).partition("=")[2]
    shutil.copy(data, tmp_path)
    names = {name}
    for words_more in (
        ["hydra.sweeper.sampler.seed=1"],
        [copied := f"data.path={Path(data).name}"],
        [copied],
    ):
        other = tuner("plan", *line, *words_more).out.splitlines()[0].split()
        assert (other[2], other[1] in names) == ("0", False)
        names.add(other[1])
        with (tmp_path / Path(data).name).open("a", encoding="utf-8") as file:
            file.write('{"messages": []}\n')
    found = from_python.run([*line, f"root={root}"], tell=lambda _line: None)
    assert [run.dir.name for run in found] == [row["run"] for row in rows]
    with pytest.raises(ConfigError, match="A search has no jobs to plan"):
        from_python.plan(line)


def first_line(tuner: Tuner, *words: str, code: int = 2) -> str:
    done: Done = tuner(*words, code=code)
    assert done.err.count("\n") == 1
    return done.err


def test_what_has_no_score_is_refused_at_once(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    line = ["-m", "hydra/sweeper=optuna", *words, "algo.r=4,8"]
    assert "no run has a held_out_loss" in first_line(tuner, *line, "data.held_out=0")
    assert "ends before anything is trained" in first_line(tuner, *line, "until=tokenize")
    assert "add hydra/sweeper=optuna." in first_line(tuner, "-m", *words, "algo.r=interval(4,8)")
    assert not (tmp_path / "outputs").exists()


def test_trials_that_all_fail_end_the_search(tuner: Tuner, words: list[str]) -> None:
    line = ["-m", "hydra/sweeper=optuna", *words, "algo.r=range(-9,0)", "hydra.sweeper.n_trials=9"]
    done = tuner(*line, "hydra/launcher=joblib", code=2)
    assert "hydra/launcher=joblib has no part in a search" in done.err
    assert "3 trials in a row failed, so the search ends here" in done.err
    assert re.match(r"sweep r-[0-9a-f]{8}: 0 of 9 jobs done, 3 failed\n", done.out)
    assert done.out.count("failed: algo.r=-") == 3
