"""What the plan says of one stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuner.config.schema import Config
from tuner.pipeline.reasons import Predecessor
from tuner.pipeline.stage import ChosenStep, Input, Stage
from tuner.store.artifacts import Artifact

State = Literal["done", "continue", "run", "wait", "part", "skip"]
"""`part`: not finished, and a step of it is all that is needed; `skip`: not there, and not needed"""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """What the plan says of one stage."""

    stage: Stage
    config: Config
    """with what had to be chosen for this stage"""
    state: State
    why: str
    origin: Mapping[str, Any] | None
    """what the artifact is made from; None while something before it is not known"""
    fingerprint: str | None
    artifact: Artifact | None
    """the published one, if it is whole and made from what is there"""
    replaces: bool = False
    """an artifact is there, but can't be used"""
    sources: Mapping[str, Path]
    known_as: str | None
    """what later stages key on: a content digest or a fingerprint"""
    contents: Mapping[str, str] = field(default_factory=dict)
    """the content digests of what it reads, as far as that is there"""
    partial: Path | None = None
    """for the state `part`: where the unfinished files lie"""
    pick: ChosenStep | None = None
    """the part of an upstream artifact that it reads"""
    predecessor: Predecessor | None = None
    """what it goes on from, when that is another artifact than its own"""
    unresolved: bool = False
    """a reference to a hub has to be looked up first"""
    pending: bool = False
    """its files are so large that they are hashed only when it runs"""
    told: str = ""
    """what its files have decided that the config left open, in words"""

    @property
    def key(self) -> str | None:
        return f"{self.stage.name}-{self.fingerprint[:12]}" if self.fingerprint else None

    @property
    def to_do(self) -> bool:
        return self.state in ("run", "continue", "wait")

    @property
    def lost(self) -> list[str]:
        """The files of one's own that the artifact refers to and that are not where they were."""
        referred = self.artifact.manifest["references"] if self.artifact else ()
        return [name for name in referred if name not in self.sources or not self.sources[name].is_file()]

    def input(self) -> Input:
        """The artifact as a later stage reads it; nothing of it is `lost`."""
        assert self.artifact is not None
        referenced = {name: self.sources[name] for name in self.artifact.manifest["references"]}
        own = {name: self.artifact.path / name for name in self.artifact.manifest["files"]}
        directory = self.artifact.path if own or not referenced else _common(list(referenced.values()))
        return Input(dir=directory, files=referenced | own, facts=self.artifact.manifest["facts"])


def _common(paths: list[Path]) -> Path:
    parents = {path.absolute().parent for path in paths}
    return parents.pop() if len(parents) == 1 else Path(*_shared_parts([p.parts for p in parents]))


def _shared_parts(paths: list[tuple[str, ...]]) -> list[str]:
    return [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
