"""The jobs of a sweep: their configs, the disk that all of them take, and running them from Python."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from tuner.api.pipeline import Tell, plan_config
from tuner.config.compose import chooses_launcher, compose_jobs, launch_jobs
from tuner.config.schema import Config
from tuner.errors import ConfigError, StageError, TunerError
from tuner.estimate import disk
from tuner.pipeline.execute import redo_stages
from tuner.pipeline.inherit import inherit
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import check_stop_words
from tuner.stages import STAGES

T = TypeVar("T")


def map_jobs(words: list[str], extra: Path | None, work: Callable[[Config], T]) -> list[T]:
    """What `work` makes of each job's config, in order. A job that fails does not stop the others; raises
    StageError at the end, which names those that failed.
    """
    call = _Job(work)
    results = (
        launch_jobs(words, call, extra=extra)
        if chooses_launcher(words)
        else [call(config, overrides) for config, overrides in compose_jobs(words, extra=extra)]
    )
    if failed := [f"{title}: {message}" for title, message, _ in results if message]:
        raise StageError(
            f"{len(failed)} of {len(results)} jobs failed, the others are done. {' '.join(failed)}"
        )
    return [found for _, _, found in results]  # type: ignore[misc]  # those that did not fail


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


def prepare_sweep(words: list[str], extra: Path | None, tell: Tell) -> None:
    """Before any job runs: raise StoreError when the disk does not hold what all of them together will make,
    and move what `redo` names to the trash. A job that can't be planned says so in its turn.
    """
    configs = []
    for job, _ in compose_jobs(words, extra=extra):
        with suppress(TunerError):
            if isinstance(job, Config):
                configs.append(sweep_job_config(job))
    planned = []
    for config in configs:
        with suppress(TunerError):
            planned.append((plan_config(config, RunDirectory.of(config)), config))
    disk.check_disk(planned)
    redo_once(configs, tell)


def redo_once(configs: Sequence[Config], tell: Tell) -> None:
    """Move what `redo` names to the trash, for all jobs before any starts: what one has built again, another
    would else build once more, in whatever process it runs.
    """
    redone: set[str] = set()
    for config in configs:
        if config.redo:
            store = store_of(config)
            store.open()
            redo_stages(config, STAGES, store, RunDirectory.of(config), redone, tell)
