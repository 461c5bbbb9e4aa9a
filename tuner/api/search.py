"""A search: trials that a study asks for, one after the other, each a run of its own that shares in the store
what is equal. The record of the sweep lists them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.api.comparison import compared_run
from tuner.api.notebook import live_curve
from tuner.api.pipeline import Tell
from tuner.api.study import Study, open_study, require_optuna
from tuner.api.sweeps import sweep_job_config
from tuner.api.trial_watch import Pruned, TrialWatch
from tuner.config.schema import Config
from tuner.config.search_space import Search, read_search
from tuner.config.validate import validate
from tuner.config.view import View
from tuner.errors import ConfigError, DataError, StageError, Stopped, StoreError, TunerError
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import check_stop_words, stages_until
from tuner.pipeline.sweeps import Aim, SweepDirectory, SweepJob, search_directory, words_of
from tuner.report.ranking import score
from tuner.report.ranking_text import job_title
from tuner.stages import STAGES

if TYPE_CHECKING:
    from optuna import Trial

IN_A_ROW = 3
"""trials that fail one after the other and end a search"""
Execute = Callable[[Config, Tell], RunDirectory]
RunTrial = Callable[[Config | TunerError, str, Execute], tuple[int, str]]
"""runs a config, or tells why there is none, under a title: (exit code, what went wrong)"""


def prepare_search(words: list[str], extra: Path | None) -> Search:
    """The search that the words mean. Raises ConfigError, also where Optuna is not installed, and where its
    runs will have no score.
    """
    require_optuna()
    search = read_search(words, extra=extra)
    base, fixed = search.base, not search.space.keys() & {"data", "data.held_out", "data.held_out_path"}
    if fixed and not base.data.held_out and not base.data.held_out_path and base.sweep.objective != "loss":
        raise ConfigError(
            f"data.held_out is 0, and without held-out rows no run has a {base.sweep.objective}, which this "
            "search is for. Hold some out, or name another score: sweep.objective=loss"
        )
    check_stop_words(base, STAGES)
    if base.until and "train" not in {stage.name for stage in stages_until(STAGES, base.until)}:
        raise ConfigError(
            f"until={base.until} ends before anything is trained, so a search finds no score: leave it out, "
            "or write until=train."
        )
    return search


def place_of(search: Search) -> SweepDirectory:
    """The directory of a search: another one for another space or setting, and for other data."""
    aim = Aim(
        objective=search.base.sweep.objective,
        maximize=search.settings.direction == "maximize",
        trials=search.settings.n_trials,
    )
    identity = search.identity() | {"data": _data(search.base)}
    return search_directory(search.base, identity, list(search.space), aim)


def _data(base: Config) -> dict[str, str]:
    """sha256 of the data's local files; none where the trials decide which these are."""
    fetch_data = next(stage for stage in STAGES if stage.name == "fetch_data")
    with suppress(TunerError, OSError):
        validate(base)  # it may lack what every trial gives
        sources = fetch_data.sources(View(base, fetch_data.name))
        return {name: store_of(base).hashes.sha256(path) for name, path in sources.items()}
    return {}


@dataclass(kw_only=True)
class OpenSearch:
    """A search that this process has to itself."""

    search: Search
    place: SweepDirectory
    study: Study
    extra: Path | None
    jobs: list[SweepJob] = field(default_factory=list)
    """the trials so far"""

    def run(self, run_trial: RunTrial, tell: Tell) -> None:
        """Make the trials that are left; each is noted when it begins and when it has ended.

        What is as true for the next trial ends the search, and leaves this one to be gone on with, as a stop
        does. Raises StoreError, and ConfigError where the runs have no score.
        """
        failed = 0
        for trial in self.study.next_trials():
            job, stuck = self._run_one(trial, run_trial)
            self._note(trial.number, job)
            failed = failed + 1 if job.code not in (0, Stopped.exit_code) else 0
            if stuck:
                tell("This is as true for other trials, so the search ends here; the same line goes on.")
                return
            if failed == IN_A_ROW and trial.number + 1 < self.search.settings.n_trials:
                tell(f"{failed} trials in a row failed, so the search ends here; the same line goes on.")
                return

    def _run_one(self, trial: "Trial", run_trial: RunTrial) -> tuple[SweepJob, bool]:
        """What became of the trial, and whether that would become of others."""
        job = SweepJob(words=words_of(self.search.point_words(trial.params)))
        found: Config | TunerError
        try:
            found = sweep_job_config(self.search.config(trial.params, self.extra))
            watch = TrialWatch(found, self.study, trial)
        except TunerError as error:
            found, watch = error, None
        if watch:
            job = replace(job, run=watch.run.dir.name)
            self.study.note_run(trial, watch.run.dir.name)
        self._note(trial.number, job)
        stuck = False

        def execute(config: Config, tell: Tell) -> RunDirectory:
            nonlocal stuck
            assert watch
            try:
                return watch.execute(config, tell)
            except TunerError as error:
                # before any trial has come through, what is read is wrong, and not the point of the space
                unread = isinstance(error, ConfigError | DataError) and not self.study.finished
                stuck = unread or isinstance(error, StoreError)
                raise

        code, message = run_trial(found, self._title(trial.number, job), execute)
        if watch and watch.pruned:
            self.study.prune(trial)
            return replace(job, code=0, pruned=True), False
        if watch and code == 0:
            code, message = self._tell_score(trial, watch.run)
        elif code != Stopped.exit_code and not stuck:
            self.study.fail(trial, code, message)
        return replace(job, code=code, message=message), stuck

    def _tell_score(self, trial: "Trial", run: RunDirectory) -> tuple[int, str]:
        objective = self.search.base.sweep.objective
        value = score(compared_run(run), objective)
        if value is None:
            raise ConfigError(
                f"{run.dir.name} has no {objective}, which this search is for. Held-out losses need held-out "
                "rows (data.held_out), and training at least (until). sweep.objective=… names another score."
            )
        if not math.isfinite(value):
            code, message = StageError.exit_code, f"{objective} is {value}."
            self.study.fail(trial, code, message)
            return code, message
        self.study.complete(trial, value)
        return 0, ""

    def _title(self, number: int, job: SweepJob) -> str:
        return f"trial {number + 1} of {self.search.settings.n_trials}: {job_title(job.words)}"

    def _note(self, number: int, job: SweepJob) -> None:
        self.jobs[number : number + 1] = [job]
        try:
            self.place.write(self.jobs)
        except OSError as error:
            raise StoreError(
                f"The record of the search, {self.place.record}, can't be written: {error.strerror}. Make "
                "space, mend its permissions, or choose another root=DIR."
            ) from error


@contextmanager
def open_search(search: Search, extra: Path | None, tell: Tell) -> Iterator[OpenSearch]:
    """The search, for as long as this process has it to itself."""
    place = place_of(search)
    with open_study(place, search, tell) as study:
        yield OpenSearch(search=search, place=place, study=study, extra=extra, jobs=noted_jobs(study))


def noted_jobs(study: Study) -> list[SweepJob]:
    """The trials of a study, as the record of a sweep has them."""
    codes = {"COMPLETE": 0, "PRUNED": 0, "RUNNING": None, "FAIL": StageError.exit_code}
    space = study.search.space.keys()
    return [
        SweepJob(
            words=words_of(study.search.point_words(trial.params)) if trial.params.keys() >= space else {},
            run=trial.user_attrs.get("run"),
            code=trial.user_attrs.get("code", codes.get(trial.state.name)),
            message=trial.user_attrs.get("message", ""),
            pruned=trial.state.name == "PRUNED",
        )
        for trial in study.trials
    ]


def run_search(words: list[str], extra: Path | None, tell: Tell) -> list[Path]:
    """Make the trials of a search from Python: the directories of their runs, in order. What fails is told,
    and has no run here; raises StageError where nothing else is left.
    """

    def run_trial(found: Config | TunerError, title: str, execute: Execute) -> tuple[int, str]:
        tell(f"── {title}")
        try:
            if isinstance(found, TunerError):
                raise found
            with live_curve(found):
                execute(found, tell)
        except Pruned as pruned:
            tell(f"── {title}: {pruned}")
        except (TunerError, Stopped) as error:
            tell(f"── {title}: {error}")
            return error.exit_code, str(error)
        return 0, ""

    with open_search(prepare_search(words, extra), extra, tell) as opened:
        opened.run(run_trial, tell)
    return _runs(opened.place, opened.jobs)


def _runs(place: SweepDirectory, jobs: Sequence[SweepJob]) -> list[Path]:
    found = [run.dir for job in jobs if job.code == 0 and (run := place.find_run(job))]
    if not found:
        told = " ".join(dict.fromkeys(job.message for job in jobs if job.message))
        raise StageError(f"None of {len(jobs)} trials was finished. {told}".rstrip())
    return found
