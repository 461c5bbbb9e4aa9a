"""tuner from Python: what the command line does, as functions.

>>> import tuner                                                                              # doctest: +SKIP
>>> run = tuner.run(["data=local", "data.path=support.jsonl", "name=support"])                # doctest: +SKIP
>>> run.metrics.column("loss")[-1]                                                            # doctest: +SKIP
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.config.compose import compose
from tuner.config.schema import Config
from tuner.estimate import disk
from tuner.pipeline.execute import execute
from tuner.pipeline.find_run import find_run
from tuner.pipeline.inherit import inherit, load_config
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import check_stop_words
from tuner.progress import quiet
from tuner.report.printable import visible
from tuner.stages import STAGES

if TYPE_CHECKING:
    from pyarrow import Table


class Run(RunDirectory):
    """A run: its directory `dir`, and what is in it."""

    def plan(self) -> list[PlannedStage]:
        """What the run's config would do now, an entry for each stage; its `stage.name`, `state` and `why`
        say it.
        """
        config = load_config(self)
        return plan(config, STAGES, store_of(config), self)

    @property
    def metrics(self) -> "Table":
        """The metrics of training so far, a row for each step; columns that a step lacks are null.
        `.to_pandas()` makes a data frame of it, where pandas is installed.
        """
        from pyarrow import Table

        from tuner.train.monitor.rows import read_rows

        rows = read_rows(self.path("train") / "metrics.jsonl")
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return Table.from_pydict({name: [row.get(name) for row in rows] for name in columns})

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"


def run(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Run the pipeline for the words that the command line would take: `run(["algo=full", "seed=1"])`. What
    is done is not done again.

    `tell` gets each line of progress; they go to standard error when it is None.
    Raises TunerError: ConfigError and DataError for what a user can fix, StageError for a stage that
    failed.
    """
    return execute_config(prepare(overrides, config_dir), tell or to_stderr)


def find(word: str = "last", *, root: str | Path = "outputs") -> Run:
    """The run that `word` means: its name, path, digest or the start of it, or `last`. Raises ConfigError."""
    return Run(find_run(Path(root), word).dir)


def prepare(overrides: Sequence[str], config_dir: str | Path | None = None) -> Config:
    """The config that the words mean. Raises ConfigError."""
    config = compose(list(overrides), extra=Path(config_dir) if config_dir else None)
    check_stop_words(config, STAGES)
    return inherit(config, STAGES)


def execute_config(
    config: Config,
    tell: Callable[[str], None],
    *,
    directory: RunDirectory | None = None,
) -> Run:
    """Run the pipeline of a config, if the disk holds what it will make; in a `directory` of its own, or in
    another.
    """
    directory = directory or RunDirectory.of(config)
    found = plan(config, STAGES, store_of(config), directory, redo=config.redo)
    disk.check_disk([(found, config)])
    return Run(execute(config, STAGES, tell, run=directory, found=found).dir)


def to_stderr(line: str) -> None:
    """Show a line of progress, where the command is not quiet."""
    if not quiet():
        print(visible(line), file=sys.stderr, flush=True)
