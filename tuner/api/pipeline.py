"""Words of a command line → a config → its plan, or its run."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tuner.config.compose import compose
from tuner.config.schema import Config
from tuner.config.view import View
from tuner.estimate import disk
from tuner.models.locate import refuse_quantised_name
from tuner.pipeline.execute import execute
from tuner.pipeline.inherit import inherit
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import check_stop_words, stages_until
from tuner.progress import quiet
from tuner.report.printable import visible
from tuner.stages import STAGES

Tell = Callable[[str], None]
"""gets each line of progress"""


def prepare(overrides: Sequence[str], config_dir: str | Path | None = None) -> Config:
    """The config that the words mean. Raises ConfigError."""
    config = compose(list(overrides), extra=Path(config_dir) if config_dir else None)
    check_stop_words(config, STAGES)
    return inherit(config, STAGES)


def plan_config(config: Config, directory: RunDirectory) -> list[PlannedStage]:
    """What would run for a config."""
    return plan(config, STAGES, store_of(config), directory, redo=config.redo)


def look_ahead(config: Config, directory: RunDirectory) -> list[PlannedStage]:
    """The same, of what is only looked at: what a run would refuse at once is refused. Raises ConfigError."""
    refuse_quantised_name(View(config, "fetch_model"))
    for stage in stages_until(STAGES, config.until):
        stage.check(View(config, stage.name))
    return plan_config(config, directory)


def execute_config(config: Config, tell: Tell, *, directory: RunDirectory | None = None) -> RunDirectory:
    """Run the pipeline of a config, if the disk holds what it will make; in a `directory` of its own, or in
    another.
    """
    directory = directory or RunDirectory.of(config)
    found = plan_config(config, directory)
    disk.check_disk([(found, config)])
    return execute(config, STAGES, tell, run=directory, found=found)


def to_stderr(line: str) -> None:
    """Show a line of progress, where the command is not quiet."""
    if not quiet():
        print(visible(line), file=sys.stderr, flush=True)
