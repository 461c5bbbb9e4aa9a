"""The contract of a stage.

A stage is a function from a config and the artifacts before it to files in one directory. It declares what
decides those files; everything else (whether to run, where, locking, publishing) is the pipeline's.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.hub.lockfile import Pin
from tuner.pipeline.sizes import DiskNeed, Quantities


@dataclass(frozen=True, kw_only=True)
class Input:
    """An artifact that a stage reads. `dir` holds `files`; for a local model or data set they are the
    person's own.
    """

    dir: Path
    files: Mapping[str, Path]
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As another process is told of it."""
        return {
            "dir": str(self.dir.absolute()),
            "files": {name: str(path.absolute()) for name, path in self.files.items()},
            "facts": dict(self.facts),
        }

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Input":
        return cls(
            dir=Path(told["dir"]),
            files={name: Path(path) for name, path in told["files"].items()},
            facts=told["facts"],
        )


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a running stage knows."""

    config: View
    inputs: Mapping[str, Input]
    """by stage name"""
    out: Path
    """an empty directory to write into; for a stage with `progress`, with what a killed one left"""
    say: Callable[[str], None]
    """tells the person, and the run's log, one line"""
    run: Path | None = None
    """the run's directory, for files of other tools that are no part of the artifact"""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """How a stage goes on from another of its artifacts, finished or not, that is the same but went less
    far.
    """

    field: str
    """the identity field that only says how far"""
    reach: Callable[[Path, View], int | None]
    """the step, not behind the config's end, from which the files in a directory can be gone on from"""
    adopt: Callable[[Path, Path, int], None]
    """puts that step of a directory into an empty one; raises OSError when it went away meanwhile"""


@dataclass(frozen=True, kw_only=True)
class ChosenStep:
    """The part of an upstream artifact that a stage reads."""

    config: Config
    """with the choice made: `best` has become a number"""
    content: str
    """the digest of that part"""
    step: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A stage that reads a part of an upstream artifact, which can then be read before that is finished."""

    upstream: str
    pick: Callable[[Path, Config, bool], ChosenStep | None]
    """from a directory, finished or not, what the config asks for; None where it is not there (yet)"""
    extract: Callable[[Path, Path, int], None]
    """puts that step into an empty directory, out of the reach of whoever goes on building; raises OSError
    when it went away
    """


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A config in which a stage's artifact has decided what it left open."""

    config: Config
    told: str = ""
    """what was found, for the person; empty where nothing was open"""


def _nothing(_config: Any) -> Any:
    return {}


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How a stage brings files from hubs; by default it brings none."""

    fetches: Callable[[View], bool] = lambda _: False
    """whether this config has it bring files, beside the local `sources`: then its content is known only
    once it was made
    """
    pins: Callable[[View], Mapping[str, Pin | None]] = _nothing
    """what the lock says of the references to hubs that the config uses, by the lock's names; None of one
    that was not looked up yet
    """
    look_up: Callable[[View, Callable[[str], None]], None] = lambda _view, _say: None
    """asks the hubs for what `pins` lacks, and writes it into the lock"""
    cost: Callable[[View, Path], tuple[int, int]] = lambda _view, _partial: (0, 0)
    """bytes still to download, and bytes that are here already: in a directory that it has begun to fill,
    or in a cache of this machine
    """


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    until: str = ""
    """the word of `until` and `redo` that means it, where that is not its name"""
    stop: bool = True
    """whether people may stop after it, or begin again at it"""
    version: int
    """bumped by hand when the stage's own code changes what it writes"""
    run: Callable[[Context], dict[str, Any]]
    """does the work and returns facts for the manifest"""
    upstream: tuple[str, ...] = ()
    """the stages whose artifacts it reads"""
    versions: Callable[[View], dict[str, int]] = _nothing
    """versions of the pieces that this config uses"""
    sources: Callable[[View], dict[str, Path]] = _nothing
    """local files that enter by content: name → where"""
    check: Callable[[View], None] = _nothing
    """raises what can be known to fail before anything runs; no heavy import"""
    own_files: Callable[[View], Iterable[Path]] = lambda _: ()
    """those of them that are the person's, and no package's or run's: the lock says what they hold"""
    references: Callable[[View], bool] = lambda _: False
    """whether `sources` are themselves the artifact's files: referenced with their hashes, not copied"""
    remote: Remote = Remote()
    """what it takes from hubs"""
    child: bool = False
    """runs in a process of its own: it imports torch, or reads what strangers wrote"""
    computes: bool = False
    """computes on machine.device, which may be a GPU"""
    several: bool = False
    """may run in several processes, which share the work: one for each GPU"""
    progress: Callable[[Path], str | None] | None = None
    """for a stage that goes on from what a killed one left: how far a partial directory is (`step 120`),
    or None
    """
    extension: Extension | None = None
    choice: Choice | None = None
    settle: Callable[[Config, Path | None], Settled] = lambda config, _: Settled(config=config)
    """what the config leaves open and the files of this stage decide, for the stages after it; None where
    they are not here yet. Raises ConfigError
    """
    recall: Callable[[Config, Mapping[str, Any]], Config] = lambda config, _: config
    """the same, as an artifact of this stage has it in its origin"""
    by_content: bool = False
    """the stages after it key on the digest of its files, wherever they came from; otherwise on its
    fingerprint
    """
    product: Callable[[View], bool] = lambda _: False
    """whether it is wanted for its own sake: built even if no later stage needs it"""
    size: Callable[[View, Quantities], DiskNeed] = lambda _view, _known: DiskNeed(peak=0, stays=0)
    """bytes of its artifact; none where the files are the person's own, referenced"""
    must_have: Callable[[View, Path, Mapping[str, Any]], Iterable[str]] = lambda *_: ()
    """the names of the files without which its artifact is not whole, from its directory and facts; raises
    DataError where what is there names others that are not
    """
    journal: tuple[str, ...] = ()
    """patterns of files that record how it went: kept and verified, but not part of the content's digest"""

    @property
    def word(self) -> str:
        """What `until` and `redo` call it."""
        return self.until or self.name
