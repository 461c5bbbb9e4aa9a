"""tuner from Python: what the command line does, as functions that take its words and return values.

    run = tuner.run(["my.yaml", "algo.epochs=2"])    runs the pipeline; with -m it returns a list of runs
    tuner.plan(["my.yaml"])                          what would run, and why
    tuner.find("support"), tuner.status()            a run that is there; a row for each
    tuner.evaluate(run, ["convert.step=best"])       and convert, merge, export, compare, rename, stop
    tuner.predict(run, "rows.csv", "answers.csv")    answers every row of a file
    tuner.reproduce(run)["equal"]                   makes it again, and compares

A run is a `Run`, or what the command line takes for one: its name, path, digest or `last`. All of them raise
TunerError: ConfigError and DataError for what a user can fix, StageError for a stage that failed.
"""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tuner.api.notebook import live_curve
from tuner.api.pipeline import Tell, execute_config, look_ahead, prepare, to_stderr
from tuner.api.runs import Run, StagePlan, stage_plans
from tuner.config.recipes import read_recipe
from tuner.config.schema import Config
from tuner.config.search_space import is_search
from tuner.errors import ConfigError
from tuner.pipeline.find_run import find_run
from tuner.pipeline.reproduce import reproduce as make_again
from tuner.pipeline.rerun import relabel, rerun
from tuner.pipeline.run import RunDirectory
from tuner.stages import STAGES

__all__ = [
    "Run",
    "StagePlan",
    "compare",
    "convert",
    "evaluate",
    "execute_config",
    "export",
    "find",
    "look_ahead",
    "merge",
    "plan",
    "predict",
    "prepare",
    "rename",
    "reproduce",
    "run",
    "status",
    "stop",
    "to_stderr",
]

Words = str | Iterable[str]
"""of a command line, one each; a string is taken apart as a shell would"""
AnyRun = Run | str | Path
"""a run, or what the command line takes for one"""


def run(words: Words = (), *, config_dir: str | Path | None = None, tell: Tell | None = None) -> Any:
    """Run the pipeline for the words that the command line would take, recipes among them: a `Run`, or with
    -m the list of its jobs' runs. What is done is not done again.

    `tell` gets each line of progress; they go to standard error when it is None.
    In a notebook a bar and the curve of the loss move while it trains.
    """
    line = _take_apart(words, config_dir)
    work = partial(_run_config, tell=tell or to_stderr)
    if not line.sweep:
        return work(prepare(line.words, line.extra))
    if is_search(line.words):
        from tuner.api.search import run_search

        return [Run(found) for found in run_search(line.words, line.extra, tell or to_stderr)]
    from tuner.api.sweeps import map_jobs, prepare_sweep

    prepare_sweep(line.words, line.extra, tell or to_stderr)
    return map_jobs(line.words, line.extra, lambda config: work(replace(config, redo=None)))


def _run_config(config: Config, tell: Tell) -> Run:
    with live_curve(config):
        return Run(execute_config(config, tell).dir)


def plan(words: Words = (), *, config_dir: str | Path | None = None) -> Any:
    """What `run` would do with these words: a list of (stage, state, why), or with -m one for each job."""
    line = _take_apart(words, config_dir)
    if not line.sweep:
        return _plan_told(prepare(line.words, line.extra))
    if is_search(line.words):
        raise ConfigError(
            "A search has no jobs to plan: what each trial is follows from the trials before it. On the "
            "command line, plan -m shows its space and what a trial takes."
        )
    from tuner.api.sweeps import map_jobs

    return map_jobs(line.words, line.extra, _plan_told)


def _plan_told(config: Config) -> list[StagePlan]:
    return stage_plans(look_ahead(config, RunDirectory.of(config)))


def find(run: AnyRun = "last", *, root: str | Path = "outputs") -> Run:
    """The run that is meant."""
    return Run(_directory(run, root).dir)


def status(*, root: str | Path = "outputs") -> list[dict[str, Any]]:
    """A row for each run under the root, newest last: its name, state, losses and disk."""
    from tuner.api.overview import read_overview

    rows: list[dict[str, Any]] = read_overview(Config(root=str(root)))["runs"]
    return rows


def compare(*runs: AnyRun, root: str | Path = "outputs") -> dict[str, Any]:
    """The fields in which runs differ, their scores, curves and answers."""
    from tuner.api.comparison import read_comparison

    return read_comparison([_directory(run, root) for run in runs])


def convert(run: AnyRun = "last", words: Words = (), *, root: str | Path = "outputs") -> Run:
    """Write a trained step as model files: `convert.step=N`, `last` or `best`."""
    return _rerun("convert", run, words, root)


def merge(run: AnyRun = "last", words: Words = (), *, root: str | Path = "outputs") -> Run:
    """Write the merged model, where the run did not."""
    return _rerun("merge", run, words, root)


def evaluate(run: AnyRun = "last", words: Words = (), *, root: str | Path = "outputs") -> Run:
    """Evaluate again: another step, other questions. The run that is returned has the `report`."""
    return _rerun("evaluate", run, words, root)


def _rerun(stage: str, run: AnyRun, words: Words, root: str | Path) -> Run:
    line = _take_apart(words, None)
    return Run(rerun(_directory(run, root), line.words, stage, to_stderr, STAGES).dir)


def export(
    run: AnyRun, kind: str, directory: str | Path | None = None, *, root: str | Path = "outputs"
) -> Path:
    """Copies to take away: adapter, base, model or original; in `directory`, or under the root."""
    from tuner.api.exports import export_run

    out = Path(directory).expanduser() if directory is not None else None
    return export_run(_directory(run, root), kind, out, [], to_stderr)


def predict(
    run: AnyRun,
    rows: str | Path,
    out: str | Path,
    words: Words = (),
    *,
    base: bool = False,
    logprobs: bool = False,
    root: str | Path = "outputs",
) -> Path:
    """Answer every row of a file with the model of a run, into `out`, in the format of its ending; `base` has
    the model that was trained on answer too. Killed, the same call goes on.
    """
    from tuner.api.predictions import predict_file

    line, target = _take_apart(words, None), Path(out).expanduser()
    predict_file(
        _directory(run, root),
        Path(rows).expanduser(),
        target,
        line.words,
        to_stderr,
        base=base,
        logprobs=logprobs,
    )
    return target


def rename(run: AnyRun, name: str, *, root: str | Path = "outputs") -> Run:
    """Give a run another name."""
    directory = _directory(run, root)
    relabel(directory, [name], [], STAGES)
    return Run(directory.dir)


def reproduce(run: AnyRun = "last", *, keep: bool = False, root: str | Path = "outputs") -> dict[str, Any]:
    """Make a finished run again in a clean root, which stays with `keep`, and compare each stage: what
    differs `first`, and why that may be, or `equal`.
    """
    said: set[str] = set()

    def tell(text: str) -> None:
        """Each line once: a stage after the other is asked for."""
        if text not in said and not text.endswith(" done"):
            said.add(text)
            to_stderr(text)

    def execute(config: Config, directory: RunDirectory) -> None:
        execute_config(config, tell, directory=directory)

    return make_again(_directory(run, root), STAGES, execute, tell, keep=keep).to_json()


def stop(run: AnyRun = "last", *, root: str | Path = "outputs") -> Run:
    """End a run that is training in another process, once it has saved."""
    from tuner.api.stopping import stop_run

    directory = _directory(run, root)
    stop_run(directory, to_stderr)
    return Run(directory.dir)


def _directory(run: AnyRun, root: str | Path) -> RunDirectory:
    return RunDirectory(run.dir) if isinstance(run, Run) else find_run(Path(root), str(run))


class _Line(NamedTuple):
    words: list[str]
    """overrides: the recipes' first"""
    sweep: bool
    extra: Path | None


def _take_apart(words: Words, config_dir: str | Path | None) -> _Line:
    """A command line without its verb. Raises ConfigError."""
    rest = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
    recipes: list[str] = []
    typed: list[str] = []
    sweep = False
    while rest:
        word = rest.pop(0)
        if word in ("-m", "--multirun"):
            sweep = True
        elif word in ("-cd", "--config-dir") and rest:
            config_dir = rest.pop(0)
        elif word.endswith((".yaml", ".yml")) and "=" not in word:
            recipes += read_recipe(Path(word).expanduser())
        elif word.startswith("-"):
            raise ConfigError(f"{word} is an option of the command line's output, and none in Python.")
        elif word in __all__:
            raise ConfigError(f"{word} is a function in Python: tuner.{word}(…).")
        else:
            typed.append(word)
    return _Line(recipes + typed, sweep, Path(config_dir).expanduser() if config_dir else None)
