"""A trial while it trains: the held-out losses that it measures go to the study, and where the study gives it
up, the run is asked to stop as `tuner stop` asks. It saves its step, and the same config alone goes on from
there.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tuner.api.pipeline import Tell, execute_config, plan_config
from tuner.api.study import Study
from tuner.config.schema import Config
from tuner.errors import Stopped
from tuner.estimate.disk import training_order
from tuner.pipeline.run import RunDirectory, store_of
from tuner.store.manifest import facts_of
from tuner.train.monitor.rows import RowReader
from tuner.train.stop_signal import STOP_FILE

if TYPE_CHECKING:
    from optuna import Trial

EVERY = 0.1
"""seconds between two looks"""


class Pruned(Stopped):
    """A search has given the trial up."""


def measured_every(config: Config) -> int:
    """The steps between two measurements that a study is told of."""
    return config.machine.measure_every or config.machine.save_every


class TrialWatch:
    """Runs the config of a trial, and tells the study what it measures."""

    def __init__(self, config: Config, study: Study, trial: "Trial") -> None:
        self.study, self.trial = study, trial
        self.run = RunDirectory.of(config)
        self.pruned: str | None = None
        """why the trial was given up"""
        self._config, self._store = config, store_of(config)
        self._every = measured_every(config)
        self._reader, self._told = RowReader(), set[int]()
        self._error: Exception | None = None

    def execute(self, config: Config, tell: Tell) -> RunDirectory:
        """As execute_config. Raises Pruned where the study gives the trial up.

        That follows from what was measured alone: a run that was faster than the stop is given up too.
        """
        self._look_at_earlier()
        if self.pruned:
            raise Pruned(self.pruned)
        with self._watching():
            try:
                run = execute_config(config, tell)
            except Stopped:
                self.look()
                if self.pruned:
                    raise Pruned(self.pruned) from None
                raise
        self.look()
        if self._error:
            raise self._error
        if self.pruned:
            raise Pruned(self.pruned)
        return run

    def _look_at_earlier(self) -> None:
        """At what it had measured before it was killed; not at what was trained on other data."""
        metrics = self.run.path("train") / "metrics.jsonl"
        if not metrics.exists():
            return
        train = next((p for p in plan_config(self._config, self.run) if p.stage.name == "train"), None)
        if train and train.state in ("done", "continue"):
            self.look()
        else:
            self._reader.pass_over(metrics)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            try:
                while not (over.wait(EVERY) or (self.pruned and self._ask_to_stop())):
                    self.look()
            except Exception as error:  # raised where the run is waited for
                self._error = error

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def look(self) -> None:
        """Tell the study what was measured since, and ask whether to go on."""
        train = self.run.path("train")
        for row in self._reader.new_rows(train / "metrics.jsonl"):
            step, loss = row["step"], row.get("held_out")
            # where a run happened to be stopped it was measured too, and others were not
            if self.pruned or loss is None or step % self._every or step in self._told:
                continue
            self._told.add(step)
            if self.study.gives_up(self.trial, step, loss) and step < self._end():
                self.pruned = f"pruned at step {step}, held-out loss {loss:.4f}"

    def _end(self) -> int:
        """The last step: a run that has come there is not given up."""
        facts = facts_of(self.run.path("tokenize"))
        return training_order(facts["packs"], self._config).end if "packs" in facts else 0

    def _ask_to_stop(self) -> bool:
        """Ask the run to stop, once, and if it is ours: another command may train the same."""
        key = self.run.key("train") or "-"
        if self._store.holder(key) != f"{socket.gethostname()}:{os.getpid()}":
            return False
        with suppress(OSError):  # it has ended this moment
            (self._store.partial(key) / STOP_FILE).touch()
        return True
