"""In a notebook, where there is no terminal for a bar: the cell shows how far training is, and its curve."""

import contextvars
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tuner.config.schema import Config
from tuner.estimate.disk import training_order
from tuner.pipeline.run import RunDirectory
from tuner.report.live_curve import live_html, live_text
from tuner.store.manifest import facts_of
from tuner.train.monitor.rows import read_rows

EVERY = 1.0
"""seconds between two looks at the metrics"""


@contextmanager
def live_curve(config: Config) -> Iterator[None]:
    """Show the training of this config in the cell, while the body runs; outside of notebooks nothing."""
    if not _in_notebook():
        yield
        return
    cell, over = _Cell(config), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            cell.show()

    # in the context of the cell, so that the notebook knows where it belongs
    watcher = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        cell.show()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class _Cell:
    """What the cell shows of a run; nothing, if it does not train."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.shown: Any = None
        self.rows = 0
        self.before = _finished(RunDirectory.of(config))

    def show(self) -> None:
        """Draw what is new since the last time."""
        from IPython.display import display  # type: ignore[import-not-found]  # a notebook brings it

        run = RunDirectory.of(self.config)
        with suppress(OSError):  # the step before was just published
            rows = read_rows(run.path("train") / "metrics.jsonl")
            packs = facts_of(run.path("tokenize")).get("packs")
            if _finished(run) == self.before is not None or len(rows) <= self.rows or not packs:
                return
            self.rows, end = len(rows), training_order(packs, self.config).end
            bundle = {"text/html": live_html(rows, end), "text/plain": live_text(rows, end)}
            if self.shown is None:
                self.shown = display(bundle, raw=True, display_id=True)
            else:
                self.shown.update(bundle, raw=True)


def _finished(run: RunDirectory) -> tuple[str | None, int] | None:
    """What a run has trained, and when; None while it has not."""
    with suppress(OSError):
        return run.key("train"), (run.path("train") / "manifest.json").stat().st_mtime_ns
    return None
