"""A sweep: one job for each combination, on one store that builds equal stages once, and a ranking at the
end. Jobs run here one after the other, or by the launcher of Hydra's that the words choose.
"""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tuner.api import execute_config, to_stderr
from tuner.api.pipeline import Tell
from tuner.api.sweeps import check_launcher, chosen_launcher, redo_once
from tuner.api.trial_watch import Pruned
from tuner.cli.idle_gpus import idle_gpus_line
from tuner.cli.launched_job import LaunchedJob
from tuner.cli.launched_jobs import VISIBLE, Launch
from tuner.cli.sweep_plan import PlannedJob, overview, plan_jobs, plans_of
from tuner.cli.sweep_ranking import loss_in_words, rank_sweep, ranking_text, write_ranking
from tuner.config.launchers import launcher_name
from tuner.config.schema import Config
from tuner.config.search_space import is_search
from tuner.errors import Stopped, StoreError, TunerError
from tuner.estimate import disk
from tuner.launch.signals import refuse_after_stop
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.sweeps import SweepDirectory, SweepJob, sweep_directory
from tuner.progress import quiet, verbose
from tuner.report.printable import visible
from tuner.report.ranking import first_sentence
from tuner.report.ranking_text import job_title
from tuner.report.span import readable_seconds


def sweep(words: list[str], *, extra: Path | None) -> int:
    """Run every job and print how they rank; returns the highest of their exit codes. Raises StoreError when
    the disk does not hold what all jobs together will make.
    """
    if is_search(words):
        from tuner.cli.search import search

        return search(words, extra=extra)
    check_launcher(words)
    jobs = plan_jobs(words, extra=extra)
    to_stderr(overview(jobs))
    if launcher_name(words) is None and (idle := idle_gpus_line(jobs)):
        to_stderr(idle)
    configs = [job.config for job in jobs if isinstance(job.config, Config)]
    disk.check_disk(plans_of(jobs))
    notes = [job.note if job.to_do or job.refusal else replace(job.note, code=0) for job in jobs]
    place = sweep_directory(Path(configs[0].root), notes, configs) if configs else None
    if place:
        _write_record(place, notes)
    redo_once(configs, to_stderr)
    ends = _launch(words, [job for job in jobs if job.to_do], len(jobs), place) if place else {}
    said: set[str] = set()
    for i, job in enumerate(jobs):
        title = _title(job, len(jobs))
        code, message = ends.get(job.number) or run_job(job.config, title, to_do=job.to_do, said=said)
        before, notes[i] = notes[i], replace(job.note, code=code, message=message)
        if place and notes[i] != before:  # at once: a sweep that is killed has told how far it was
            _write_record(place, notes)
    if place:
        ranking = rank_sweep(place)
        print(ranking_text(ranking))
        print(write_ranking(place, ranking))
    else:
        print(f"sweep: 0 of {len(jobs)} jobs done")
        for job, note in zip(jobs, notes, strict=True):
            print(f"failed: {job_title(job.note.words)}: {first_sentence(note.message)}")
    return max((note.code or 0 for note in notes), default=0)


def _write_record(place: SweepDirectory, notes: Sequence[SweepJob]) -> None:
    try:
        place.write(notes)
    except OSError as error:
        raise StoreError(
            f"The record of the sweep, {place.record}, can't be written: {error.strerror}. Make space, mend "
            "its permissions, or choose another root=DIR."
        ) from error


def _title(job: PlannedJob, of: int) -> str:
    return f"job {job.number} of {of}: {job_title(job.note.words)}"


def _launch(
    words: list[str], jobs: Sequence[PlannedJob], of: int, place: SweepDirectory
) -> dict[int, tuple[int, str]]:
    """What became of the jobs that a launcher runs, by their numbers; none where the words choose none."""
    launcher = chosen_launcher(words, place.dir / "logs") if jobs else None
    if launcher is None:
        return {}
    launched = []
    for job in jobs:
        assert isinstance(job.config, Config)
        title = _title(job, of)
        work = partial(run_job, job.config, title, to_do=True)
        shows = launcher.name in VISIBLE and not launcher.settings.get("gpus_per_node")
        launched.append(
            (LaunchedJob(sweep=place, note=job.note, config=job.config, work=work, shows_gpus=shows), title)
        )
    ends = Launch(launcher, launched, _tell).run()
    return {job.number: end for job, end in zip(jobs, ends, strict=True)}


def run_job(
    config: Config | TunerError,
    title: str,
    *,
    to_do: bool,
    said: set[str] | None = None,
    execute: Callable[[Config, Tell], RunDirectory] = execute_config,
) -> tuple[int, str]:
    """Run one job: (exit code, what went wrong). Only an interruption ends the sweep. What went wrong is
    printed, but for what was `said` of a job before it.
    """
    said = set() if said is None else said
    began = time.monotonic()
    try:
        if isinstance(config, TunerError):
            raise config
        if not to_do:  # the overview has said so
            execute_config(replace(config, redo=None), lambda _line: None)
            return 0, ""
        to_stderr(f"── {title}")
        run = execute(replace(config, redo=None), to_stderr)
        _tell(
            f"── {title}: done in {readable_seconds(time.monotonic() - began)}{loss_in_words(run)}", "green"
        )
    except Pruned as pruned:
        _tell(f"── {title}: {pruned}", "yellow")
    except Stopped as stopped:  # this run only, and on purpose
        return _ended(title, str(stopped), stopped.exit_code, said)
    except TunerError as error:
        refuse_after_stop()
        if verbose():
            traceback.print_exc()
        return _ended(title, str(error), error.exit_code, said)
    except Exception as error:  # a bug of ours: shown in full, and the other jobs go on
        refuse_after_stop()
        traceback.print_exc()
        return _ended(title, f"{type(error).__name__}: {error}", 1, said)
    return 0, ""


def _ended(title: str, message: str, code: int, said: set[str]) -> tuple[int, str]:
    again = message in said
    if not again:
        _complain(message)
        said.add(message)
    end = "stopped" if code == Stopped.exit_code else "failed"
    _tell(f"── {title}: {end}{', for the same reason' if again else ''}", "red")
    return code, message


def _complain(why: object) -> None:
    """Say what went wrong with a job, however quiet the command is."""
    print(visible(f"tuner: {why}"), file=sys.stderr, flush=True)


def _tell(line: str, style: str) -> None:
    """A line on standard error, in colour on a terminal."""
    if quiet() or not sys.stderr.isatty():
        to_stderr(line)
        return
    from rich.console import Console

    Console(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)
