"""The record of a sweep: which jobs it has, and what became of each.

    sweeps/<name, or the fields that differ>-<digest>/
      sweep.json  ranking.html  ranking.csv
      jobs/<digest of a run>.json    what became of a job that a launcher ran, noted by the job itself
      jobs/stop                      none shall begin
      logs/<run>.log                 what such a job said
      study.log                      of a search, what Optuna keeps of it

The digest is of the runs of its jobs, so the same line again, in any order of its values, is the same sweep.
That of a search, which has a study and finds its jobs as it goes, is of what it searches.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tuner.config.schema import Config
from tuner.errors import ConfigError, did_you_mean
from tuner.files import read_json, write_json
from tuner.pipeline.named_directory import NamedDirectory
from tuner.pipeline.run import RunDirectory, run_digest
from tuner.store.digests import json_digest

T = TypeVar("T")

VERSION = 1
STUDY = "study.log"
"""the file that keeps the study of a search"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepJob:
    """A job of a sweep, and what became of it."""

    words: Mapping[str, str] = field(default_factory=dict)
    """what was typed for it: field → value"""
    run: str | None = None
    """the name of its run's directory; None where its config was refused"""
    code: int | None = None
    """the exit code; None where it has not ended"""
    message: str = ""
    """what went wrong, in one sentence"""
    pruned: bool = False
    """whether a search has stopped it before its end"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """What the jobs of a sweep are ranked by."""

    objective: str = "held_out_loss"
    """`sweep.objective`"""
    maximize: bool = False
    """whether the highest is best"""
    trials: int | None = None
    """of a search, how many it makes in all"""


class SweepDirectory(NamedDirectory):
    """The directory of one sweep."""

    def __init__(self, directory: Path, aim: Aim | None = None) -> None:
        super().__init__(directory)
        self._aim = aim

    @property
    def root(self) -> Path:
        """The output root."""
        return self.dir.parent.parent

    @property
    def record(self) -> Path:
        """The file that lists the jobs."""
        return self.dir / "sweep.json"

    def write(self, jobs: Sequence[SweepJob]) -> None:
        """Note the jobs, whole or not at all."""
        noted = {"version": VERSION, "aim": asdict(self.aim()), "jobs": [asdict(job) for job in jobs]}
        write_json(self.record, noted, indent=1)

    def aim(self) -> Aim:
        """What its jobs are ranked by, as is known or was noted. Raises ConfigError as `jobs` does."""
        if self._aim is None:
            self._aim = self._read("aim", lambda aim: Aim(**aim), {})
        return self._aim

    def jobs(self) -> list[SweepJob]:
        """The jobs as they were noted, by whoever started them or by themselves. Raises ConfigError where the
        record can't be read.
        """
        return self._read("jobs", lambda jobs: [self._with_end(SweepJob(**job)) for job in jobs], None)

    def _read(self, part: str, make: Callable[[Any], T], absent: Any) -> T:
        try:
            return make((read_json(self.record) or {}).get(part, absent))
        except TypeError as error:
            raise ConfigError(
                f"{self.record} can't be read. The same sweep typed again writes it anew; what is done is "
                "not done again."
            ) from error

    def _with_end(self, job: SweepJob) -> SweepJob:
        if job.code is not None or (end := self.end(job)) is None:
            return job
        return replace(job, code=end[0], message=end[1])

    def log(self, job: SweepJob) -> Path:
        """What a job says that a launcher runs."""
        return self.dir / "logs" / f"{job.run}.log"

    def end(self, job: SweepJob) -> tuple[int, str] | None:
        """What became of a job, as it has noted itself: exit code, and what went wrong."""
        noted = read_json(self._end_file(job)) or {}
        return (int(noted["code"]), str(noted["message"])) if {"code", "message"} <= noted.keys() else None

    def note_end(self, job: SweepJob, code: int, message: str) -> None:
        """Note what became of a job: whoever launched it may not be there any more."""
        self._end_file(job).parent.mkdir(exist_ok=True)
        write_json(self._end_file(job), {"code": code, "message": message})

    def forget_ends(self, jobs: Sequence[SweepJob]) -> None:
        """Before jobs run again."""
        for file in (*map(self._end_file, jobs), self._stop_file):
            file.unlink(missing_ok=True)

    def _end_file(self, job: SweepJob) -> Path:
        return self.dir / "jobs" / f"{(job.run or '').rpartition('-')[2]}.json"

    @property
    def _stop_file(self) -> Path:
        return self.dir / "jobs" / "stop"

    def ask_to_stop(self) -> None:
        """Let no job begin that a launcher has still to start."""
        self._stop_file.parent.mkdir(exist_ok=True)
        self._stop_file.touch()

    @property
    def stopping(self) -> bool:
        """Whether none shall begin."""
        return self._stop_file.exists()

    def find_run(self, job: SweepJob) -> RunDirectory | None:
        """The run of a job, whatever it is called by now; None while there is none."""
        if job.run is None:
            return None
        runs, digest = self.root / "runs", job.run.rpartition("-")[2]
        found = [runs / job.run, *sorted(runs.glob(f"*-{re.sub(r'[^0-9a-f]', '', digest)}"))]
        return next((RunDirectory(path) for path in found if (path / "config.yaml").is_file()), None)


def sweep_directory(root: Path, jobs: Sequence[SweepJob], configs: Sequence[Config]) -> SweepDirectory:
    """The directory of a sweep with these jobs. It is called what their configs are called, or else after
    the fields that differ.
    """
    names = {config.name for config in configs}
    called = names.pop() if len(names) == 1 else None
    refused = [dict(job.words) for job in jobs if job.run is None]
    identity = [sorted(run_digest(config) for config in configs), refused]
    aim = Aim(objective=configs[0].sweep.objective)
    return _directory(root, called, swept_fields(jobs), identity, aim)


def search_directory(
    base: Config, identity: Mapping[str, Any], fields: Sequence[str], aim: Aim
) -> SweepDirectory:
    """The directory of a search over these fields, around the config `base`."""
    whole = [run_digest(base), dict(identity)]
    return _directory(Path(base.root), base.name, fields, whole, aim)


def _directory(
    root: Path, called: str | None, fields: Sequence[str], identity: Any, aim: Aim
) -> SweepDirectory:
    words = called or "-".join(field.rpartition(".")[2] for field in fields) or "sweep"
    plain = re.sub(r"[^\w.()+-]+", "_", words)[:80]
    return SweepDirectory(root / "sweeps" / f"{plain}-{json_digest(identity)[:8]}", aim)


def swept_fields(jobs: Sequence[SweepJob]) -> list[str]:
    """The words in which jobs differ, in the order in which they were typed."""
    return [
        name
        for name in dict.fromkeys(name for job in jobs for name in job.words)
        if len({job.words.get(name) for job in jobs}) > 1
    ]


def all_sweeps(root: Path) -> list[SweepDirectory]:
    """Every sweep under an output root, the one that ran last at the end."""
    found = [SweepDirectory(file.parent) for file in sorted((root / "sweeps").glob("*/sweep.json"))]
    return sorted(found, key=lambda sweep: sweep.record.stat().st_mtime)


def find_sweep(root: Path, word: str = "last") -> SweepDirectory:
    """The sweep that a person means: its name, its digest or the start of it, or `last`. Raises
    ConfigError.
    """
    sweeps = all_sweeps(root)
    if word == "last" and sweeps:
        return sweeps[-1]
    found = (
        [sweep for sweep in sweeps if sweep.dir.name == word]
        or [sweep for sweep in sweeps if sweep.name == word]
        or [sweep for sweep in sweeps if len(word) >= 3 and sweep.digest.startswith(word)]
    )
    if len(found) == 1:
        return found[0]
    if not sweeps:
        raise ConfigError(f"There is no sweep under {root}. Start one with -m and commas between values.")
    names = ", ".join(sweep.dir.name for sweep in found or sweeps)
    if found:
        raise ConfigError(f"{word} means {len(found)} sweeps under {root}; name one of {names}.")
    hint = did_you_mean(word, {name for sweep in sweeps for name in (sweep.dir.name, sweep.name)})
    raise ConfigError(f"{word} is no sweep under {root}.{hint} There are: {names}.")


def words_of(overrides: Sequence[str]) -> dict[str, str]:
    r"""A job's words, as field → value, without the quotes of Hydra's grammar.

    >>> words_of(["algo=full", "data.system='it\\'s'", "seed=1"])
    {'algo': 'full', 'data.system': "it's", 'seed': '1'}
    """
    found: dict[str, Any] = {}
    for word in overrides:
        name, _, value = word.partition("=")
        if len(value) > 1 and value[0] == value[-1] == "'":
            value = value[1:-1].replace("\\'", "'")
        found[name] = value
    return found
