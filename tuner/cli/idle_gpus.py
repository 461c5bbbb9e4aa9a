"""What a sweep that runs its jobs one after the other says of GPUs that it leaves idle."""

from collections.abc import Sequence

from tuner.cli.sweep_plan import PlannedJob
from tuner.config.schema import Config
from tuner.errors import TunerError
from tuner.hardware.libraries import how_to_install, installed_version
from tuner.pipeline.gpus import idle_gpus

PLUGIN = "hydra-joblib-launcher"


def idle_gpus_line(jobs: Sequence[PlannedJob]) -> str | None:
    """The words that use them, where two jobs or more could compute at once."""
    wishes = [wish for job in jobs if (wish := _gpus_wanted(job))]
    if len(wishes) < 2:
        return None
    idle = len(idle_gpus())
    at_once = min(idle // max(wishes), len(wishes))
    if at_once < 2:
        return None
    first = "" if installed_version(PLUGIN) else f", after {how_to_install(PLUGIN)}"
    return (
        f"{idle} GPUs are idle, and these jobs run one after the other. {at_once} run at once, on GPUs of "
        f"their own, with hydra/launcher=joblib hydra.launcher.n_jobs={at_once}{first}"
    )


def _gpus_wanted(job: PlannedJob) -> int:
    """How many GPUs a job takes of those that are idle."""
    if not isinstance(job.config, Config) or isinstance(job.plan, TunerError):
        return 0
    machine = job.config.machine
    computes = any(planned.stage.computes and planned.to_do for planned in job.plan)
    if not computes or machine.device == "cpu" or machine.nodes > 1 or isinstance(machine.gpus, tuple):
        return 0
    return 1 if machine.gpus == "auto" else machine.gpus
