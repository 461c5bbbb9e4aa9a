"""A search on the command line: its space in front, its trials as the jobs of a sweep, and their ranking at
the end.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuner.api import to_stderr
from tuner.api.pipeline import plan_config
from tuner.api.search import Execute, noted_jobs, open_search, place_of, prepare_search
from tuner.api.study import Study, load_study
from tuner.api.sweeps import sweep_job_config
from tuner.api.trial_watch import measured_every
from tuner.cli.sweep import run_job
from tuner.cli.sweep_plan import in_all
from tuner.cli.sweep_ranking import rank_sweep, ranking_text, write_ranking
from tuner.config.schema import Config
from tuner.config.search_space import Search
from tuner.errors import TunerError
from tuner.estimate.work import SweepWork, sweep_work, training_work
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.sweeps import STUDY, SweepDirectory, SweepJob
from tuner.report.columns import columns
from tuner.report.ranking import first_sentence


def search(words: list[str], *, extra: Path | None) -> int:
    """Make the trials that are left, and print how all of them rank; returns the highest exit code."""
    found = prepare_search(words, extra)
    with open_search(found, extra, to_stderr) as opened:
        place = opened.place
        left = found.settings.n_trials - _finished(opened.jobs)
        to_stderr(search_text(found, place, opened.jobs, _a_trial(found, extra) if left > 0 else Trial()))
        opened.run(_run_trial, to_stderr)
        ranking = rank_sweep(place)
        print(ranking_text(ranking))
        print(write_ranking(place, ranking))
    return max((job.code or 0 for job in opened.jobs), default=0)


def _run_trial(config: Config | TunerError, title: str, execute: Execute) -> tuple[int, str]:
    return run_job(config, title, to_do=True, execute=execute)


def plan_search(words: list[str], flags: Collection[str], *, extra: Path | None) -> int:
    """Print where a search looks, how far it is and what a trial takes; with --check, 3 says that trials are
    left.
    """
    found = prepare_search(words, extra)
    place = place_of(found)
    jobs = noted_jobs(Study(load_study(place, found), found)) if (place.dir / STUDY).exists() else []
    left = max(found.settings.n_trials - _finished(jobs), 0)
    trial = _a_trial(found, extra) if left else Trial()
    if "--json" in flags:
        told = {
            "search": place.dir.name,
            "space": {key: asdict(dimension) for key, dimension in found.space.items()},
            "objective": found.base.sweep.objective,
            **asdict(found.settings),
            "left": left,
            "a_trial": trial.work.to_json() if trial.work else None,
        }
        print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        print(search_text(found, place, jobs, trial))
    return 3 if "--check" in flags and left else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one trial takes, as far as that is known."""

    work: SweepWork | None = None
    steps: int | None = None
    refused: str = ""
    """why there is none at the first values of the space"""


def search_text(search: Search, place: SweepDirectory, jobs: Sequence[SweepJob], trial: Trial) -> str:
    """The space of a search, how it is searched, and how far it is."""
    settings, trials = search.settings, max(search.settings.n_trials, len(jobs))
    head = f"search {place.dir.name}: {_finished(jobs)} of {trials} trials finished"
    if pruned := sum(job.pruned for job in jobs):
        head += f", {pruned} of them pruned"
    rows = [[f"  {key}", str(dimension)] for key, dimension in search.space.items()]
    lines = [
        head,
        *columns(rows),
        f"  {settings.direction}s {search.base.sweep.objective}: sampler {_words(settings.sampler)}; pruner "
        f"{_words(settings.pruner)}",
    ]
    if trial.work and (told := in_all(trial.work)):
        lines.append(f"  a trial: {told}, what all share among them")
    every = measured_every(search.base)
    if settings.pruner["name"] != "none" and trial.steps and trial.steps <= every:
        lines.append(
            f"  none is pruned: it has {trial.steps:,} steps, and the held-out loss is measured every "
            f"{every:,} (machine.measure_every)"
        )
    if trial.refused:
        lines.append(f"  a trial at the first values is refused: {trial.refused}")
    if search.ignored:
        lines.append(f"  trials run one after the other: {' '.join(search.ignored)} has no part in a search")
    return "\n".join(lines)


def _words(settings: Any) -> str:
    """What samples or prunes, with its settings as they are typed."""
    more = ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items() if key != "name")
    return f"{settings['name']} ({more})" if more else str(settings["name"])


def _finished(jobs: Sequence[SweepJob]) -> int:
    """How many have ended; one that was stopped goes on."""
    return sum(job.code is not None for job in jobs)


def _a_trial(search: Search, extra: Path | None) -> Trial:
    """What a trial takes, by one that stands for all; nothing where that one is refused."""
    try:
        config = sweep_job_config(search.config(search.first_point(), extra))
        plan = plan_config(config, RunDirectory.of(config))
        training = training_work({planned.stage.name: planned for planned in plan}, config)
        return Trial(work=sweep_work([(plan, config)]), steps=training.order.end if training else None)
    except TunerError as error:
        return Trial(refused=first_sentence(str(error)))
