"""The runs of a training in TensorBoard, Weights & Biases, SwanLab, MLflow and Trackio, each behind the same
four words.

The packages are imported where a run is opened. What they would send of the machine by themselves is switched
off.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

OPENING, CLOSING = 60.0, 30.0
"""seconds that a training waits at most for a tracker, at its beginning and at its end"""


class TrackerRun(Protocol):
    """One run in one tracker. Its methods may raise whatever they like."""

    run: str
    """by which the tracker finds the run again"""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def text(self, name: str, text: str, step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = directory.name
        self._writer: Any = SummaryWriter(log_dir=str(directory), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)

    def close(self, failed: bool) -> None:  # noqa: ARG002
        self._writer.close()


class Wandb:
    """Weights & Biases. Rows of steps that it has already are ignored by it."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], run: str | None) -> None:
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
            project=project,
            name=name,
            config=dict(config),
            id=run,
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
    def __init__(self, project: str, name: str, config: Mapping[str, Any], run: str | None) -> None:
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
            project=project, name=name, config=dict(config), id=run, resume="allow", settings=settings
        )
        self.run = str(self._run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._swanlab.log(dict(values), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._swanlab.log({name: self._swanlab.Text(text)}, step=step)

    def close(self, failed: bool) -> None:
        self._swanlab.finish(
            state="crashed" if failed else "success",
            error="the training did not end as it should" if failed else None,
        )


class MLflow:
    """MLflow, through its client, which adds no tags of its own. Texts are artifacts."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], run: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient()
        self._last = -1
        if run is None:
            experiment = client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else client.create_experiment(project)
            self.run = client.create_run(number, run_name=name).info.run_id
            client.log_batch(self.run, params=[Param(key, str(value)[:500]) for key, value in config.items()])
        else:
            self.run = run
            client.update_run(run, status="RUNNING")
            self._last = max(
                (metric.step for metric in client.get_metric_history(run, "train/loss")), default=-1
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

    def __init__(self, project: str, name: str, config: Mapping[str, Any], run: str | None) -> None:
        import trackio

        self.run = run or name
        self._trackio = trackio
        self._run = trackio.init(
            project=project,
            name=self.run,
            config=dict(config),
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


def as_html(text: str) -> str:
    """A text as HTML that shows it as it is."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<pre>{escaped}</pre>"
