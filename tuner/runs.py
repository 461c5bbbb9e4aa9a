"""The view of a run: one directory of relative links to its artifacts, with the config and the log.

    runs/<name or model-algo-data>-<digest>/   config.yaml, log, report.md, and links named after the stages

The digest is of what the person wrote that decides the result (not where it is computed, nor what it is called), so a
run and a sweep's job of the same config share the directory, and no path holds a date.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tuner.errors import ConfigError
from tuner.freeze import freeze, thaw
from tuner.schema import Config
from tuner.stage import leaves
from tuner.store import Artifact, Store, digest

try:
    from yaml import CSafeDumper as Dumper
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeDumper as Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as Loader  # type: ignore[assignment]


def store_of(config: Config) -> Store:
    """The store that a config names."""
    return Store(Path(config.store) if config.store else Path(config.root) / "store")


def run_digest(config: Config) -> str:
    """Of the identity and place fields, as written."""
    return digest({path: value for path, role, value in leaves(config) if role.kind != "neutral" and value != role.left_out})[:8]


def run_name(config: Config) -> str:
    """The name of the run's directory, without the root."""

    def called(group: str, path: Any) -> str:
        chosen = config.choices.get(group, group)
        first = path if isinstance(path, str) else path[0] if path else ""
        if chosen != "local" or not first:
            return chosen
        plain = re.sub(r"\.(jsonl?|gguf)\Z", "", Path(first).name)
        return plain if "*" not in plain else Path(first).parent.name or chosen

    words = config.name or "-".join((called("model", config.model.path), config.choices.get("algo", "algo"), called("data", config.data.path)))
    plain = re.sub(r"[^\w.()-]+", "_", words)[:80]
    return f"{plain}-{run_digest(config)}"


class Run:
    """The directory of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, config: Config) -> "Run":
        return cls(Path(config.root) / "runs" / run_name(config))

    def create(self, config: Config) -> None:
        """Make the directory and write the config into it, if it is not there as it is now."""
        self.path.mkdir(parents=True, exist_ok=True)
        whole = replace(config, until=None, redo=None)  # wishes of one invocation, not of the run
        text = yaml.dump(thaw(whole), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
        file = self.path / "config.yaml"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            part = self.path / f".config.yaml.{os.getpid()}"
            part.write_text(text, encoding="utf-8")
            part.rename(file)

    def config(self) -> Config:
        """The config that the run was made with. Raises ConfigError when the file is not one."""
        file = self.path / "config.yaml"
        try:
            return freeze(yaml.load(file.read_text(encoding="utf-8"), Loader=Loader))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{file} can't be read: {' '.join(str(error).split())}") from error

    def key(self, stage: str) -> str | None:
        """The key of the artifact that the run links for `stage`."""
        try:
            return (self.path / stage).readlink().name
        except OSError:
            return None

    def link(self, stage: str, artifact: Artifact) -> None:
        """Point the run at an artifact, with a relative link that survives moving the root."""
        self._point(stage, os.path.relpath(artifact.path, self.path))

    def _point(self, name: str, target: str) -> None:
        link = self.path / name
        if link.is_symlink() and str(link.readlink()) == target:
            return
        part = self.path / f".{name}.{os.getpid()}"
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        part.rename(link)

    def show_report(self) -> None:
        """Put the report where a person looks first."""
        self._point("report.md", "evaluate/report.md")

    def log(self, line: str) -> None:
        """Append a line to the run's log."""
        with (self.path / "log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")


def all_runs(root: Path) -> Iterator[Run]:
    """Every run under an output root."""
    for file in sorted((root / "runs").glob("*/config.yaml")):
        yield Run(file.parent)
