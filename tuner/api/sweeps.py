"""The jobs of a sweep: their configs, the disk that all of them take, and running them from Python."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from tuner.api.pipeline import Tell, plan_config
from tuner.config.compose import chooses_launcher, compose_jobs
from tuner.config.launchers import Launcher, find_launcher, installed_launchers, launcher_name
from tuner.config.schema import Config
from tuner.errors import ConfigError, StageError, TunerError, did_you_mean
from tuner.estimate import disk
from tuner.hardware.libraries import how_to_install
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
    check_launcher(words)
    jobs = compose_jobs(words, extra=extra)
    calls = [partial(_Job(work), config, overrides) for config, overrides in jobs]
    results = _launch(words, jobs, calls)
    if failed := [f"{title}: {message}" for title, message, _ in results if message]:
        raise StageError(
            f"{len(failed)} of {len(results)} jobs failed, the others are done. {' '.join(failed)}"
        )
    return [found for _, _, found in results]  # type: ignore[misc]  # those that did not fail


PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
"""launcher → the distribution that brings it"""


def check_launcher(words: list[str]) -> None:
    """Raise ConfigError where the launcher that the words choose is not installed here, or where it has no
    such settings.
    """
    name = launcher_name(words)
    if name is None or name in (there := installed_launchers()):
        if chooses_launcher(words):
            find_launcher(words, Path())
        if name == "submitit_slurm" and not shutil.which("srun"):
            raise ConfigError(
                "hydra/launcher=submitit_slurm hands jobs to Slurm, whose srun is not found here: type the "
                "line on a machine of the cluster, or run the jobs on this one, with "
                "hydra/launcher=submitit_local."
            )
        return
    if plugin := PLUGINS.get(name):
        raise ConfigError(
            f"hydra/launcher={name} needs {plugin}, which is not installed here. Install it, with: "
            f"{how_to_install(plugin)}"
        )
    raise ConfigError(
        f"hydra/launcher={name}: there is no such launcher here.{did_you_mean(name, [*there, *PLUGINS])} "
        f"There are: {', '.join(there)}."
    )


def chosen_launcher(words: list[str], directory: Path) -> Launcher | None:
    """The launcher that the words choose, set up to write into `directory`; None where jobs run here, one
    after the other. Raises ConfigError.
    """
    if launcher_name(words) is None:
        return None
    launcher = find_launcher(words, directory)
    return None if launcher.settings.get("n_jobs") == 1 else launcher


def _launch(
    words: list[str], jobs: Sequence[tuple[Config | ConfigError, list[str]]], calls: Sequence[Callable[[], T]]
) -> list[T]:
    root = next((job.root for job, _ in jobs if isinstance(job, Config)), Config().root)
    directory = Path(root) / "sweeps" / ".launched"
    launcher = chosen_launcher(words, directory)
    try:
        return launcher.map(calls) if launcher else [call() for call in calls]
    finally:
        with suppress(OSError):  # it is not there, or holds what a launcher wrote
            directory.rmdir()


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
