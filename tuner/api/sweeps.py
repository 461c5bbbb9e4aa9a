"""The jobs of a sweep: their configs, the disk that all of them take, and running them from Python."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from tuner.config.compose import compose_sweep
from tuner.config.schema import Config
from tuner.errors import ConfigError, StageError, TunerError
from tuner.estimate import disk
from tuner.pipeline.inherit import inherit
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import check_stop_words
from tuner.stages import STAGES

T = TypeVar("T")


def map_jobs(words: list[str], extra: Path | None, work: Callable[[Config], T]) -> list[T]:
    """What `work` makes of each job's config, in order. A job that fails does not stop the others; raises
    StageError at the end, which names those that failed.
    """
    results = compose_sweep(words, _Job(work), extra=extra)
    if failed := [f"{title}: {message}" for title, message, _ in results if message]:
        raise StageError(
            f"{len(failed)} of {len(results)} jobs failed, the others are done. {' '.join(failed)}"
        )
    return [found for _, _, found in results]


@dataclass(frozen=True)
class _Job(Generic[T]):
    """What Hydra's launcher calls; a class, so that launchers can send it to other processes."""

    work: Callable[[Config], T]

    def __call__(self, job: Config | ConfigError, overrides: list[str]) -> tuple[str, str, T | None]:
        title = " ".join(overrides)
        try:
            if isinstance(job, ConfigError):
                raise job
            return title, "", self.work(sweep_job_config(job))
        except TunerError as error:
            return title, str(error), None


def sweep_job_config(job: Config) -> Config:
    """A job's config: with what it takes from an earlier run, and without a merged model that nobody asked
    for.
    """
    check_stop_words(job, STAGES)
    return inherit(
        replace(job, merge=replace(job.merge, when="never")) if job.merge.when == "auto" else job, STAGES
    )


def check_sweep_disk(words: list[str], extra: Path | None) -> None:
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
