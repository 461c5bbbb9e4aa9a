"""A study asks for the same trials however often it was closed, survives a half-written line, and finds what
was planted in fewer steps than random draws.
"""

import math
from pathlib import Path
from statistics import median

import pytest

from tuner.api.study import Study, open_study, require_optuna
from tuner.config.search_space import SWEEPER, read_search
from tuner.errors import ConfigError, StoreError
from tuner.pipeline.sweeps import STUDY, SweepDirectory

pytest.importorskip("optuna")

LR = "algo.optim.lr"
PLANTED, STEPS, TRIALS = 3e-3, 50, 20
SPACE = f"{LR}=tag(log,interval(1e-6,1))"


def loss_at(lr: float, step: int) -> float:
    """A curve of training that ends lowest with the rate that was planted."""
    return 1 + math.log10(lr / PLANTED) ** 2 / 5 + 2 * math.exp(-step / 20)


class Searched:
    """What a search over these curves did."""

    def __init__(self, place: Path, *words: str, sessions: int = 1, trials: int = TRIALS) -> None:
        search = read_search([SWEEPER, SPACE, f"hydra.sweeper.n_trials={trials}", *words], extra=None)
        self.place = SweepDirectory(place / "sweeps" / "lr-12345678")
        self.spent: list[tuple[float, int]] = []
        """the rate of each trial, and its steps"""
        for _ in range(sessions):
            with open_study(self.place, search, lambda _line: None) as study:
                for done, trial in enumerate(study.next_trials(), 1):
                    self.spent.append((trial.params[LR], train(study, trial)))
                    if sessions > 1 and done == trials // sessions:
                        break
                self.trials = study.trials

    def steps_to_find(self) -> int:
        """The steps until a trial came within a tenth of a decade of it; all, where none did."""
        steps = 0
        for lr, taken in self.spent:
            steps += taken
            if abs(math.log10(lr / PLANTED)) < 0.1:
                break
        return steps


def train(study: Study, trial: object) -> int:
    """Train on such a curve; the steps that it took."""
    lr = trial.params[LR]  # type: ignore[attr-defined]
    for step in range(5, STEPS, 5):
        if study.gives_up(trial, step, loss_at(lr, step)):  # type: ignore[arg-type]
            study.prune(trial)  # type: ignore[arg-type]
            return step
    study.complete(trial, loss_at(lr, STEPS))  # type: ignore[arg-type]
    return STEPS


def test_a_study_that_was_closed_goes_on_as_one_that_was_not(tmp_path: Path) -> None:
    whole = Searched(tmp_path / "one")
    parts = Searched(tmp_path / "two", sessions=4)
    assert parts.spent == whole.spent
    assert [trial.state for trial in parts.trials] == [trial.state for trial in whole.trials]
    assert len({lr for lr, _ in whole.spent}) == TRIALS
    other = Searched(tmp_path / "three", "hydra.sweeper.sampler.seed=1", trials=2)
    assert other.spent != whole.spent[:2]


def test_what_was_begun_is_taken_up(tmp_path: Path) -> None:
    search = read_search([SWEEPER, SPACE, "hydra.sweeper.n_trials=3"], extra=None)
    place = SweepDirectory(tmp_path / "lr-12345678")
    with open_study(place, search, lambda _line: None) as study:
        begun = next(study.next_trials())
        study.gives_up(begun, 5, 2.0)
    journal = place.dir / STUDY
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "trial')  # the machine went down
    with open_study(place, search, lambda _line: None) as study:
        trial = next(study.next_trials())
        assert (trial.number, trial.params) == (begun.number, begun.params)
        assert study.trials[0].intermediate_values == {5: 2.0}
        study.fail(trial, 2, "no")
        assert [trial.number for trial in study.next_trials()] == [1, 2]
        assert study.trials[0].user_attrs == {"code": 2, "message": "no"}
    journal.write_bytes(b"{}\n" + whole)
    with (
        pytest.raises(StoreError, match=r"study\.log is no study that Optuna reads"),
        open_study(place, search, lambda _line: None),
    ):
        pass


def test_it_finds_what_was_planted_in_fewer_steps_than_random_draws(tmp_path: Path) -> None:
    """At the same number of trials, over several seeds: fewer in all, and fewer until it is found."""
    asked, drawn = (
        [
            Searched(tmp_path / kind / str(seed), *words, f"hydra.sweeper.sampler.seed={seed}")
            for seed in range(7)
        ]
        for kind, words in (
            ("tpe", ["hydra.sweeper.sampler.n_startup_trials=5"]),
            ("random", ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"]),
        )
    )
    assert {len(found.spent) for found in asked + drawn} == {TRIALS}
    first, second = ([found.steps_to_find() for found in group] for group in (asked, drawn))
    assert median(first) < median(second)
    assert sum(first) < sum(second)
    assert max(sum(steps for _, steps in found.spent) for found in asked) < STEPS * TRIALS


def test_without_optuna_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.api.study.installed_version", lambda _name: None)
    with pytest.raises(ConfigError, match=r"not installed here: pip install 'optuna>=5\.0,<6'$"):
        require_optuna()
