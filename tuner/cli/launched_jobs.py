"""The jobs of a sweep that a launcher of Hydra's runs, seen from the command that launches them: a line for
each that changes its state, and what became of all.

Nothing is sent between them: what is told is read off the log of each run, the lock that a job holds while it
runs, and the note that it leaves. So a job that an earlier command launched is followed like any other.
"""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tuner.cli.launched_job import End, LaunchedJob
from tuner.cli.sweep_ranking import loss_in_words
from tuner.config.launchers import Launcher
from tuner.errors import Interrupted, in_one_line
from tuner.launch.signals import count_signals, without_ctrl_c
from tuner.report.ranking import first_sentence
from tuner.report.span import readable_seconds

LOOK = 0.5
"""seconds between two looks at the jobs"""
TELL_EVERY = 20.0
"""seconds, for each job that runs, between two lines about their steps"""
UNSEEN = 60.0
"""seconds after which a note that another machine wrote is seen here, over NFS"""
QUEUES = ("submitit_slurm",)
"""launchers whose jobs go on when the command that launched them ends"""
VISIBLE = ("submitit_local",)
"""launchers that hide all GPUs from a job, or show each job the same, unless they are told a number"""
_STAGE = re.compile(r"\S+ (?P<stage>\w+) +(?P<state>run|continue|waiting)\b:?(?P<more>.*)")
_GPU = re.compile(r"\S+ {3}(?P<gpu>on GPU .*)")
_STEP = re.compile(r"\S+ {3}(?P<step>step \d+/\d+ +loss \S+)")


@dataclass(kw_only=True)
class _Followed:
    """A job as it is seen from here."""

    job: LaunchedJob
    title: str
    log: Path
    """of its run"""
    read: int
    """bytes of it that were there before, or were read"""
    began: float | None = None
    holder: str | None = None
    """who runs it, or has run it last"""
    ended: float | None = None
    """since when nobody runs it"""
    end: End | None = None
    stage: str = ""
    step: str = ""
    """what is still to be told of it"""
    told: float = field(default_factory=time.monotonic)

    def news(self) -> list[str]:
        """The lines that its run has logged since the last look."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.read)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


class Launch:
    """Jobs of a sweep, handed to a launcher and followed until they end."""

    def __init__(
        self,
        launcher: Launcher,
        jobs: Sequence[tuple[LaunchedJob, str]],
        tell: Callable[[str, str], None],
    ) -> None:
        """`jobs` with what they are called; `tell` gets each line and its colour."""
        self._launcher, self._tell = launcher, tell
        self._sweep = jobs[0][0].sweep
        self._jobs = [
            _Followed(job=job, title=title, log=(log := _run_log(job)), read=_size(log))
            for job, title in jobs
        ]
        self._running = [one for one in self._jobs if one.job.store.holder(one.job.lock)]
        """those that an earlier command launched"""
        self._new = [one for one in self._jobs if one not in self._running]
        self._results: dict[str, End] = {}
        """what the launcher has brought back, by title"""
        self._trouble: Exception | None = None
        # Ctrl-C is for this process, which passes it on
        self._thread = threading.Thread(target=self._launch, daemon=True)

    def run(self) -> list[End]:
        """What became of each job. An interruption ends them, or says that they go on; raises Interrupted."""
        self._sweep.forget_ends([one.job.note for one in self._new])
        self._introduce()
        self._thread.start()
        try:
            while any(one.end is None for one in self._jobs):
                self._look()
                time.sleep(LOOK)
        except (Interrupted, KeyboardInterrupt):
            self._stop()
            raise
        self._thread.join()
        return [one.end or (1, "") for one in self._jobs]

    def _introduce(self) -> None:
        minutes = self._launcher.settings.get("timeout_min")
        limit = f", with {minutes} min for each (hydra.launcher.timeout_min)" if minutes else ""
        logs = self._sweep.dir / "logs"
        if self._new:
            count = f"{len(self._new)} job{'s' * (len(self._new) > 1)}"
            self._tell(f"{count} queued by {self._launcher.name}{limit}; their logs: {logs}", "")
        for one in self._running:
            self._tell(f"── {one.title}: an earlier command launched it, and it runs", "")

    def _launch(self) -> None:
        """Have the launcher run the jobs, and once more those that did not end where it loses a process: some
        take all others down with one. A job that runs all the same is left alone.
        """
        with without_ctrl_c():
            for again in (False, True):
                left = [one for one in self._new if self._sweep.end(one.job.note) is None]
                if not left or (again and (self._launcher.name in QUEUES or self._sweep.stopping)):
                    return
                if again:
                    self._tell(f"{self._trouble_told()} Jobs that have not ended are launched again", "red")
                self._trouble = None
                try:
                    ends = self._launcher.map([one.job for one in left])
                except Exception as error:  # of whatever a launcher is made of
                    self._trouble = error
                else:
                    self._results = {one.title: end for one, end in zip(left, ends, strict=True) if end}
                    return

    def _trouble_told(self) -> str:
        """What the launcher says went wrong."""
        return first_sentence(f"{self._launcher.name}: {in_one_line(self._trouble)}") if self._trouble else ""

    def _look(self) -> None:
        over = not self._thread.is_alive()
        for one in self._jobs:
            if one.end is not None:
                continue
            holder = one.job.store.holder(one.job.lock)
            if holder and (one.began is None or holder != one.holder):
                one.began, one.holder = one.began or time.monotonic(), holder
                self._say(one, f"on {holder}, log {self._sweep.log(one.job.note)}")
            one.ended = None if holder else one.ended or time.monotonic()
            self._read(one)
            if holder is None and (end := self._results.get(one.title) or self._sweep.end(one.job.note)):
                self._finish(one, end)
            elif over and one.ended and time.monotonic() - one.ended > self._patience(one):
                self._finish(one, (1, self._death(one)))

    def _read(self, one: _Followed) -> None:
        for line in one.news():
            if match := _STAGE.match(line):
                waits = f": waiting, {match['more'].strip()}" if match["state"] == "waiting" else ""
                if (stage := f"{match['stage']}{waits}") != one.stage:
                    one.stage, one.step = stage, ""
                    self._say(one, stage)
            elif match := _GPU.match(line):
                self._say(one, f"{one.stage} {match['gpu']}")
            elif match := _STEP.match(line):
                one.step = match["step"]
        running = sum(other.ended is None and other.end is None for other in self._jobs)
        if one.step and one.ended is None and time.monotonic() - one.told > TELL_EVERY * running:
            self._say(one, f"{one.stage} {one.step}")
            one.step = ""

    def _patience(self, one: _Followed) -> float:
        return UNSEEN if one.holder and _pid_here(one.holder) is None else 2 * LOOK

    def _death(self, one: _Followed) -> str:
        """Why there is no answer of a job."""
        if one.began is None:
            queued = ", but it may still be in the queue" if self._launcher.name in QUEUES else ""
            why = f"{self._launcher.name} has not started it{queued}."
        else:
            why = f"Its process, {one.holder}, ended without an answer; its log has its last words."
        return " ".join([why, "The same line goes on from what is saved.", self._trouble_told()]).rstrip()

    def _finish(self, one: _Followed, end: End) -> None:
        one.end = end
        code, message = end
        if code == 0:
            spent = f" in {readable_seconds(time.monotonic() - one.began)}" if one.began else ""
            run = self._sweep.find_run(one.job.note)
            self._say(one, f"done{spent}{loss_in_words(run) if run else ''}", "green")
        elif code == Interrupted.exit_code:
            self._say(one, f"stopped: {message}", "red")
        else:
            self._say(one, f"failed: {message} Its log: {self._sweep.log(one.job.note)}", "red")

    def _say(self, one: _Followed, what: str, style: str = "") -> None:
        one.told = time.monotonic()
        self._tell(f"── {one.title}: {what}", style)

    def _stop(self) -> None:
        """End the jobs of this machine, each of which saves its step; those in a queue go on."""
        if self._launcher.name in QUEUES:
            self._tell(
                "the jobs go on in the queue, and the same line follows them; python -m tuner status --sweep "
                "shows how they rank, and scancel ends them",
                "",
            )
            return
        with count_signals(for_another=True) as came:
            self._sweep.ask_to_stop()
            self._tell("the jobs finish the step at hand and save it; again to stop without saving", "")
            passed_on = -1
            while pids := self._pids():
                if len(came) > passed_on:
                    passed_on = len(came)
                    for pid in pids:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
                time.sleep(LOOK / 5)
            self._thread.join(20 * LOOK)
        self._look()

    def _pids(self) -> list[int]:
        """The processes of this machine that run jobs."""
        holders = [one.job.store.holder(one.job.lock) for one in self._jobs]
        return [pid for holder in holders if holder and (pid := _pid_here(holder)) and pid != os.getpid()]


def _run_log(job: LaunchedJob) -> Path:
    return job.sweep.root / "runs" / (job.note.run or "") / "log"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _pid_here(holder: str) -> int | None:
    """The process that host:pid names, where it is one of this machine."""
    host, _, pid = holder.rpartition(":")
    return int(pid) if host == socket.gethostname() and pid.isdecimal() else None
