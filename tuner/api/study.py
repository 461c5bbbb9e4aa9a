"""The study of a search: Optuna asks for trials and is told what came of them. It lies beside the record of
the sweep, and whoever has it open has it alone.

What is asked for follows from the seed, the number of the trial and what the others found, so a search that
was killed goes on as one that was not.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.config.search_space import Choices, Dimension, Search
from tuner.errors import ConfigError, StoreError
from tuner.hardware.libraries import how_to_install, installed_version
from tuner.pipeline.sweeps import STUDY, SweepDirectory
from tuner.store import locks
from tuner.store.digests import json_digest

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

LOCK = ".lock"


def require_optuna() -> None:
    """Raise ConfigError where Optuna is not installed."""
    if installed_version("optuna") is None:
        raise ConfigError(
            f"hydra/sweeper=optuna needs Optuna, which is not installed here: {how_to_install('optuna')}"
        )


class Study:
    """An open study. What it is told is on the disk when a method returns; raises StoreError where that can't
    be.
    """

    def __init__(self, study: "OptunaStudy", search: Search) -> None:
        self.study, self.search = study, search

    @property
    def trials(self) -> "list[FrozenTrial]":
        """All trials, in the order in which they were asked for."""
        found: list[FrozenTrial] = self.study.get_trials()
        return found

    @property
    def finished(self) -> bool:
        """Whether a trial has come to its end or was pruned."""
        from optuna.trial import TrialState

        return any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in self.trials)

    def next_trials(self) -> "Iterator[Trial]":
        """Those that were begun and not finished, then new ones, until there are as many as were wanted."""
        from optuna import Trial
        from optuna.trial import TrialState

        for begun in self.trials:
            if begun.state == TrialState.RUNNING:
                yield self._suggest(begun.number, partial(Trial, self.study, begun._trial_id))
        while (number := len(self.trials)) < self.search.settings.n_trials:
            yield self._suggest(number, self.study.ask)

    def _suggest(self, number: int, begin: "Callable[[], Trial]") -> "Trial":
        """The trial with a value for each dimension; one that it has already stays. It has a sampler of its
        own: no state of a generator is ever saved.
        """
        self.study.sampler = make_sampler(self.search.settings.sampler, number)
        with _writing():
            trial = begin()
            for key, dimension in self.search.space.items():
                suggest(trial, key, dimension)
        return trial

    def note_run(self, trial: "Trial", name: str) -> None:
        """The name of the trial's run, beside its values."""
        with _writing():
            trial.set_user_attr("run", name)

    def gives_up(self, trial: "Trial", step: int, loss: float) -> bool:
        """Note a held-out loss while training; whether the trial is to end there."""
        value = -loss if self.search.settings.direction == "maximize" else loss
        with _writing():
            if step not in self.trials[trial.number].intermediate_values:
                trial.report(value, step)
        return bool(trial.should_prune())

    def complete(self, trial: "Trial", value: float) -> None:
        with _writing():
            self.study.tell(trial, value)

    def prune(self, trial: "Trial") -> None:
        from optuna.trial import TrialState

        with _writing():
            self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: "Trial", code: int, message: str) -> None:
        from optuna.trial import TrialState

        with _writing():
            trial.set_user_attr("code", code)
            trial.set_user_attr("message", message)
            self.study.tell(trial, state=TrialState.FAIL)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The study of the search can't be written ({error.filename}): {error.strerror}. Make space, "
            "mend its permissions, or choose another root=DIR."
        ) from error


@contextmanager
def open_study(place: SweepDirectory, search: Search, tell: Callable[[str], None]) -> Iterator[Study]:
    """The study in the directory of a search, which is made where there is none. Another process that has it
    is waited for, and `tell` says so. Raises StoreError where nothing can be written there.
    """

    def waiting(holder: str) -> None:
        tell(f"waiting: {holder} runs this search ({place.dir.name})")

    with ExitStack() as stack:
        with _writing():
            place.dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.exclusive(place.dir / LOCK, waiting, group=False))
            study = Study(load_study(place, search), search)
        yield study


def load_study(place: SweepDirectory, search: Search) -> "OptunaStudy":
    """Optuna's study, on its journal in that directory. Raises StoreError where that can't be read."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = place.dir / STUDY
    try:
        _cut_half_line(file)
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_Held()))
        return optuna.create_study(
            storage=storage,
            study_name=place.dir.name,
            direction=search.settings.direction,
            pruner=make_pruner(search.settings.pruner),
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise StoreError(
            f"{file} is no study that Optuna reads ({error}). Move it away: what is done is not done again, "
            "and the search asks for the same trials."
        ) from error


class _Held:
    """The lock of the journal: nothing, since the study is open once."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _cut_half_line(file: Path) -> None:
    """What a machine that went down has written of its last line is no line."""
    if file.exists() and (text := file.read_bytes()) and not text.endswith(b"\n"):
        with file.open("r+b") as journal:
            journal.truncate(text.rfind(b"\n") + 1)


def make_sampler(settings: Mapping[str, Any], number: int) -> "BaseSampler":
    """The sampler of one trial."""
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    given = {key: value for key, value in settings.items() if key not in ("name", "seed")}
    seed = settings["seed"]
    drawn = None if seed is None else int(json_digest([seed, number])[:8], 16)
    kind = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}[settings["name"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        made: BaseSampler = kind(seed=drawn, **given)
    return made


def make_pruner(settings: Mapping[str, Any]) -> "BasePruner":
    from optuna import pruners

    given = {key: value for key, value in settings.items() if key != "name"}
    made: BasePruner = {"median": pruners.MedianPruner, "none": pruners.NopPruner}[settings["name"]](**given)
    return made


def suggest(trial: "Trial", key: str, dimension: Dimension) -> Any:
    """A value of the dimension."""
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(key, dimension.values)
    if dimension.whole:
        low, high = round(dimension.low), round(dimension.high)
        return trial.suggest_int(key, low, high, step=round(dimension.step or 1), log=dimension.log)
    return trial.suggest_float(key, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
