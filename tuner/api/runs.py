"""A run as Python has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tuner.api.pipeline import plan_config
from tuner.config.schema import Config
from tuner.errors import ConfigError, did_you_mean
from tuner.files import read_json
from tuner.pipeline.inherit import load_config
from tuner.pipeline.named_directory import NamedDirectory
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory
from tuner.stages import STAGES
from tuner.train.monitor.rows import read_rows

if TYPE_CHECKING:
    from pyarrow import Table


class StagePlan(NamedTuple):
    """What would become of a stage."""

    stage: str
    state: str
    """`done`, `run`, `continue`, `wait`, `part` or `skip`"""
    why: str


class Run(NamedDirectory):
    """A run: its directory `dir`, and what is in it."""

    @property
    def config(self) -> Config:
        """The config that it was made with, with the places where things lie now."""
        return load_config(RunDirectory(self.dir))

    def path(self, stage: str) -> Path:
        """The directory of what a stage made, or has made so far. Raises ConfigError where there is none."""
        names = [known.name for known in STAGES]
        if stage not in names:
            raise ConfigError(
                f"{stage!r} is no stage of a run.{did_you_mean(stage, names)} They are: {', '.join(names)}."
            )
        if (found := self.dir / stage).exists():
            return found
        if (self.dir / "train").exists() and stage in ("convert", "merge", "evaluate"):
            raise ConfigError(f"{self.dir.name} has no {stage} yet; tuner.{stage}(run) makes it.")
        raise ConfigError(
            f"{self.dir.name} has no {stage} yet: the run did not come so far, or it was cleaned."
        )

    def plan(self) -> list[StagePlan]:
        """What its config would do now, an entry for each stage."""
        return stage_plans(plan_config(self.config, RunDirectory(self.dir)))

    @property
    def metrics(self) -> "Table":
        """The metrics of training so far, a row for each step; columns that a step lacks are null.
        `.to_pandas()` makes a data frame of it, where pandas is installed.
        """
        from pyarrow import Table

        rows = read_rows(self.path("train") / "metrics.jsonl")
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return Table.from_pydict({name: [row.get(name) for row in rows] for name in columns})

    @property
    def report(self) -> dict[str, Any]:
        """Losses and answers, before and after."""
        return read_json(self.path("evaluate") / "report.json") or {}

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"


def stage_plans(found: Sequence[PlannedStage]) -> list[StagePlan]:
    return [StagePlan(planned.stage.name, planned.state, planned.why) for planned in found]
