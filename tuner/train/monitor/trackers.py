"""The curves of a run in TensorBoard, Weights & Biases, SwanLab, MLflow or Trackio, as machine.trackers
names them.

None of them can harm a run. Each is spoken to in a thread of its own, so that a slow server delays no
step; one that is not installed, does not answer or fails is left out from there on, and that is said once. A
run that goes on writes into the same one: `trackers.json` remembers which.

Sent are the rows of the journal and the settings that decide the result. No host name, absolute path, git
remote, command line or output of the terminal is sent by us, and what the trackers would add of these by
themselves is switched off. Files of a tracker's own lie in the run's directory (wandb, swanlog), MLflow's
database beside the runs and Trackio's in its cache, unless its environment variables say otherwise; these
say, too, with which account it speaks.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from queue import Empty, Queue
from typing import Any

from tuner.files import read_json, write_json
from tuner.train.monitor.backends import BACKENDS, CLOSING, OPENING, RunInfo, TrackerRun

FILE = "trackers.json"
CURVES = ("loss", "held_out", "lr", "grad_norm", "tokens", "targets", "tokens_per_second", "mfu", "memory")
"""of a journal's row, what trackers get"""


class TrackerThread:
    """A tracker and the thread that speaks to it. Nothing here blocks for longer than it says."""

    def __init__(self, name: str, opened: Callable[[], TrackerRun], say: Callable[[str], None]) -> None:
        self.name, self.run, self._opened = name, "", False
        self._say = say
        self._ready = threading.Event()
        self._given_up = False
        self._work: Queue[Callable[[TrackerRun], None] | None] = Queue()
        self._thread = threading.Thread(
            target=self._talk, args=(opened,), name=f"tracker {name}", daemon=True
        )
        self._thread.start()

    def opened(self, until: float) -> bool:
        """Wait for the tracker to answer, until this time of the monotonic clock at most."""
        if not self._ready.wait(max(0.0, until - time.monotonic())):
            self._leave_out("does not answer")
        return self._opened

    def do(self, work: Callable[[TrackerRun], None]) -> None:
        if not self._given_up:
            self._work.put(work)

    def close(self, failed: bool, until: float) -> None:
        """Let it finish, until this time of the monotonic clock at most."""
        self.do(lambda board: board.close(failed))
        self._work.put(None)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._leave_out("did not finish in time, and may lack the last rows")

    def _talk(self, opened: Callable[[], TrackerRun]) -> None:
        try:
            board = opened()
            self.run, self._opened = board.run, True
            self._ready.set()
            while work := self._work.get():
                work(board)
        except ImportError as error:
            self._leave_out(f"is not installed ({error.name or error} is missing): pip install {self.name}")
        except BaseException as error:  # some end the process with SystemExit where an account is missing
            told = " ".join(str(error).split())[:300]
            self._leave_out(f"failed ({type(error).__name__}{': ' * bool(told)}{told})")
        finally:
            self._ready.set()

    def _leave_out(self, why: str) -> None:
        if not self._given_up:
            self._given_up = True
            self._say(
                f"the tracker {self.name} {why}; training goes on without it, and metrics.jsonl has all rows"
            )
            while not self._work.empty():
                try:
                    self._work.get_nowait()
                except Empty:
                    break


class Trackers:
    """The trackers of one run, those that answered."""

    def __init__(self, threads: Sequence[TrackerThread]) -> None:
        self._threads = threads

    def write(self, row: Mapping[str, Any]) -> None:
        """A row of the journal."""
        values = {
            f"train/{name}": float(row[name]) for name in CURVES if name in row and math.isfinite(row[name])
        }
        for thread in self._threads:
            thread.do(lambda board: board.scalars(values, row["step"]))

    def text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown."""
        for thread in self._threads:
            thread.do(lambda board: board.text(name, text, step))

    def close(self, *, failed: bool = False) -> None:
        """Wait until they have all that was written, for some seconds at most."""
        until = time.monotonic() + CLOSING
        for thread in self._threads:
            thread.close(failed, until)


def open_trackers(
    names: Sequence[str],
    out: Path,
    *,
    place: Path,
    project: str,
    name: str,
    config: Mapping[str, Any],
    step: int,
    say: Callable[[str], None],
) -> Trackers:
    """Open the trackers called `names` for the run in the directory `out`, which goes on after `step`
    steps (0: begins).

    place   the run's directory, where trackers may keep files
    name    what the run is called
    config  the settings that decide the result, by dotted path

    What can't be opened is said and left out. A run that was begun is gone on with: `trackers.json` in `out`
    remembers it.
    """
    known: dict[str, str] = {} if step == 0 else read_json(out / FILE) or {}
    sent = shareable_settings(config)
    threads = []
    for kind in names:
        info = RunInfo(
            out=out,
            place=place,
            project=project,
            name=name,
            config=sent,
            step=step,
            known=known.get(kind),
        )
        threads.append(TrackerThread(kind, partial(BACKENDS[kind], info), say))
    until = time.monotonic() + OPENING
    answering = [thread for thread in threads if thread.opened(until)]
    runs = known | {thread.name: thread.run for thread in answering if thread.run}
    if runs:
        write_json(out / FILE, runs, indent=2)
    return Trackers(answering)


def shareable_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings may leave the machine: no paths of it.

    >>> shareable_settings({"algo.r": 8, "algo.targets": ("q_proj",), "model.path": "/home/me/model",
    ...     "model.adapter": None})
    {'algo.r': 8, 'algo.targets': ['q_proj']}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if value is None or any(
            isinstance(one, Path) or (isinstance(one, str) and is_absolute(one)) for one in values
        ):
            continue
        found[key] = values if isinstance(value, list | tuple) else value
    return found


def is_absolute(text: str) -> bool:
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
