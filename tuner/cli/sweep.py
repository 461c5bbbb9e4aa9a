"""A sweep: one job for each combination, through Hydra's sweeper and launcher, on one store that builds
equal stages once.
"""

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from tuner.api import to_stderr
from tuner.cli.plan_text import sweep_summary
from tuner.config.compose import compose_sweep
from tuner.config.schema import Config
from tuner.errors import ConfigError, Interrupted, Stopped, TunerError
from tuner.estimate import disk
from tuner.launch.signals import refuse_after_stop
from tuner.pipeline.inherit import inherit
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import check_stop_words
from tuner.progress import verbose
from tuner.report.printable import visible
from tuner.stages import STAGES


def sweep(words: list[str], verb: Callable[[Config], int], *, extra: Path | None, dry: bool = False) -> int:
    """Call `verb` with the config of every job; returns the highest of their exit codes. A `dry` sweep
    builds nothing.
    """
    if not dry:
        _check_disk(words, extra)
    results = compose_sweep(words, partial(_job, verb), extra=extra, dry=dry)
    if not dry:
        print(sweep_summary(results))
    return max((code for _, code, _ in results), default=0)


def _check_disk(words: list[str], extra: Path | None) -> None:
    """Raise StoreError when the disk does not hold what all jobs together will make. A job that can't be
    planned says so in its turn.
    """
    jobs: list[tuple[list[PlannedStage], Config]] = []

    def look(job: Config | ConfigError, _overrides: list[str]) -> None:
        with suppress(TunerError):
            if isinstance(job, Config):
                job = sweep_job_config(job)
                jobs.append((plan(job, STAGES, store_of(job), RunDirectory.of(job), redo=job.redo), job))

    compose_sweep(words, look, extra=extra, dry=True)
    disk.check_disk(jobs)


def sweep_job_config(job: Config) -> Config:
    """A job's config: with what it takes from an earlier run, and without a merged model that nobody asked
    for.
    """
    check_stop_words(job, STAGES)
    return inherit(
        replace(job, merge=replace(job.merge, when="never")) if job.merge.when == "auto" else job, STAGES
    )


def _job(
    verb: Callable[[Config], int], job: Config | ConfigError, overrides: list[str]
) -> tuple[str, int, str]:
    """One job: (what it is, exit code, what went wrong). Only an interruption ends the sweep."""
    title = " ".join(overrides)
    to_stderr(f"── {title}")
    try:
        if isinstance(job, ConfigError):
            raise job
        return title, verb(sweep_job_config(job)), ""
    except Stopped as stopped:  # this run only, and on purpose
        _complain(stopped)
        return title, stopped.exit_code, str(stopped)
    except (Interrupted, KeyboardInterrupt) as error:
        _complain(error or "interrupted")
        # not an Exception: Hydra's launcher would go on with the next job
        raise SystemExit(Interrupted.exit_code) from error
    except TunerError as error:
        refuse_after_stop()
        if verbose():
            traceback.print_exc()
        _complain(error)
        return title, error.exit_code, str(error)
    except Exception as error:  # a bug of ours: shown in full, and the other jobs go on
        refuse_after_stop()
        traceback.print_exc()
        return title, 1, f"{type(error).__name__}: {error}"


def _complain(why: object) -> None:
    """Say what went wrong with a job, however quiet the command is."""
    print(visible(f"tuner: {why}"), file=sys.stderr, flush=True)
