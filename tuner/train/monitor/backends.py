"""TensorBoard, Weights & Biases, SwanLab, MLflow and Trackio, each behind the same interface.

Another tracker is a class here, an entry of `BACKENDS`, and its word in `machine.trackers`. Packages are
imported where a run is opened. What they would send of the machine by themselves is switched off.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

OPENING, CLOSING = 60.0, 30.0
"""seconds that a run waits at most for a tracker, at its beginning and at its end"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What a run is opened with."""

    out: Path
    """the training directory"""
    place: Path
    """the run's directory, where a tracker may keep files of its own"""
    project: str
    name: str
    config: Mapping[str, Any]
    """the settings that may leave the machine, by dotted path"""
    step: int
    """optimizer steps done before"""
    known: str | None
    """the id under which the tracker has the run already"""


class TrackerRun(Protocol):
    """One run in one tracker. Its methods may raise whatever they like."""

    run: str
    """the id by which the tracker finds the run again; empty where it needs none"""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def text(self, name: str, text: str, step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """TensorBoard. It knows its run by the directory."""

    run = ""

    def __init__(self, info: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(info.out / "tensorboard"), purge_step=info.step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)

    def close(self, failed: bool) -> None:  # noqa: ARG002
        self._writer.close()


class Wandb:
    """Weights & Biases. Rows of steps that it has already are ignored by it."""

    def __init__(self, info: RunInfo) -> None:
        import wandb

        quiet = {
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "disable_git": True,
            "disable_code": True,
            "disable_job_creation": True,
            "console": "off",
            "silent": True,
            "host": "tuner",
            "init_timeout": OPENING,
            "finish_timeout": CLOSING,
        }
        settings = wandb.Settings(
            **{key: value for key, value in quiet.items() if key in wandb.Settings.model_fields}
        )
        self._wandb = wandb
        self._run = wandb.init(
            project=info.project,
            name=info.name,
            dir=None if "WANDB_DIR" in os.environ else str(info.place),
            config=dict(info.config),
            id=info.known,
            resume="allow",
            reinit="create_new",
            settings=settings,
            allow_val_change=True,
        )
        self.run = str(self._run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: self._wandb.Html(as_html(text), inject=False)}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class SwanLab:
    def __init__(self, info: RunInfo) -> None:
        import swanlab

        self._swanlab = swanlab
        settings = swanlab.Settings(
            interactive=False,
            probe={
                "hardware": False,
                "runtime": False,
                "requirements": False,
                "conda": False,
                "git": False,
                "swanlab": False,
            },
            terminal={"proxy_type": "none"},
        )
        self._run = swanlab.init(
            project=info.project,
            name=info.name,
            log_dir=None if "SWANLAB_LOG_DIR" in os.environ else str(info.place / "swanlog"),
            config=dict(info.config),
            id=info.known,
            resume="allow",
            settings=settings,
        )
        self.run = str(self._run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._swanlab.log(dict(values), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._swanlab.log({name: self._swanlab.Text(text)}, step=step)

    def close(self, failed: bool) -> None:
        self._swanlab.finish(
            state="crashed" if failed else "success",
            error="training did not end as it should" if failed else None,
        )


class MLflow:
    """MLflow, through its client, which adds no tags of its own. Texts are artifacts.

    Its database is one for all runs, since its page compares those that are in one.
    """

    def __init__(self, info: RunInfo) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        root = info.place.parent.parent.absolute()
        own = not {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_DIR"} & os.environ.keys()
        self._client = client = MlflowClient(f"sqlite:///{root}/mlflow.db" if own else None)
        self._last = -1
        if info.known is None:
            experiment = client.get_experiment_by_name(info.project)
            number = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(
                    info.project, artifact_location=(root / "mlruns").as_uri() if own else None
                )
            )
            self.run = client.create_run(number, run_name=info.name).info.run_id
            client.log_batch(
                self.run, params=[Param(key, str(value)[:500]) for key, value in info.config.items()]
            )
        else:
            self.run = info.known
            client.update_run(self.run, status="RUNNING")
            self._last = max(
                (metric.step for metric in client.get_metric_history(self.run, "train/loss")),
                default=-1,
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if step > self._last:  # a step that is done again is there already, and would be there twice
            now = int(time.time() * 1000)
            self._client.log_batch(
                self.run, metrics=[Metric(name, value, now, step) for name, value in values.items()]
            )

    def text(self, name: str, text: str, step: int) -> None:
        self._client.log_text(self.run, text, f"{name}/{step:06d}.md")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class Trackio:
    """Trackio. It knows a run by its name, and would keep a row that comes twice twice."""

    def __init__(self, info: RunInfo) -> None:
        import trackio

        self.run = info.known or info.name
        self._trackio = trackio
        self._run = trackio.init(
            project=info.project,
            name=self.run,
            config=dict(info.config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
        )
        # what it has of a run that is gone on with it tells nowhere else
        self._next = int(getattr(self._run, "_next_step", 0))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if step >= self._next:
            self._run.log(dict(values), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: self._trackio.Markdown(text)}, step=step)

    def close(self, failed: bool) -> None:  # noqa: ARG002
        self._run.finish()


BACKENDS: Mapping[str, Callable[[RunInfo], TrackerRun]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "swanlab": SwanLab,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""by the words of machine.trackers, which are the names of the packages too"""


def as_html(text: str) -> str:
    """A text as HTML that shows it as it is."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<pre>{escaped}</pre>"
