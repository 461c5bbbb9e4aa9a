"""The view of a run: one directory of relative links to its artifacts, with the config and the log.

    runs/<name or model-algo-data>-<digest>/   config.yaml, log, report.md, and links named after the stages

The digest is of what the person wrote that decides the result (not where it is computed, nor what it is
called), so a run and a sweep's job of the same config share the directory, and no path holds a date.
"""

import os
import re
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tuner.config.build import build_config, dump_config
from tuner.config.schema import Config, Sweep
from tuner.config.view import leaves
from tuner.errors import ConfigError
from tuner.files import read_json, write_json
from tuner.pipeline.named_directory import NamedDirectory
from tuner.progress import verbose
from tuner.report.printable import visible
from tuner.store import references
from tuner.store.artifacts import Store, key_of
from tuner.store.digests import json_digest

try:
    from yaml import CSafeDumper as Dumper
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeDumper as Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as Loader  # type: ignore[assignment]


GIVEN_UP = ".renamed"
"""a file in a run's directory: names that it has no more, though its command or recipe may say so"""


def store_of(config: Config) -> Store:
    """The store that a config names."""
    return Store(Path(config.store) if config.store else Path(config.root) / "store")


def run_digest(config: Config) -> str:
    """Of the identity and place fields, as written."""
    return json_digest(
        {
            path: value
            for path, declared, value in leaves(config)
            if declared.kind != "neutral" and value != declared.left_out
        }
    )[:8]


def run_name(config: Config) -> str:
    """The name of the run's directory, without the root."""
    return f"{_as_name(config.name or recipe_words(config))}-{run_digest(config)}"


def recipe_words(config: Config) -> str:
    """What a run is called that nobody gave a name: model-algo-data."""

    def called(group: str, path: Any) -> str:
        chosen = config.choices.get(group, group)
        if group == "model" and config.model.run:
            return config.model.run
        if group == "model" and chosen == "hub" and config.model.repo:
            return config.model.repo.rpartition("/")[2]
        first = path if isinstance(path, str) else path[0] if path else ""
        if chosen != "local" or not first:
            return chosen
        plain = re.sub(r"\.(jsonl?|gguf)\Z", "", Path(first).name)
        return plain if "*" not in plain else Path(first).parent.name or chosen

    return _as_name(
        "-".join(
            (
                called("model", config.model.path),
                config.choices.get("algo", "algo"),
                called("data", config.data.path),
            )
        )
    )


def _as_name(words: str) -> str:
    return re.sub(r"[^\w.()+-]+", "_", words)[:80]


class RunDirectory(NamedDirectory):
    """The directory of one run."""

    @classmethod
    def of(cls, config: Config) -> "RunDirectory":
        """The run of a config: the directory that ends in its digest, whatever it is called, or the one
        that it will have.
        """
        name, digest = run_name(config), run_digest(config)
        there = [run for run in all_runs(Path(config.root)) if run.digest == digest]
        return next(
            (run for run in there if run.dir.name == name),
            there[0] if there else cls(Path(config.root) / "runs" / name),
        )

    def create(self, config: Config, store: Store) -> None:
        """Make the directory, under the name that the config gives, and write the config into it, if it is
        not there as it is now.

        A name, note or tags from before stay where the config has none, and so does a name that the run was
        given in place of this one.
        """
        if config.name in self.names_given_up():
            config = replace(config, name=None)
        if config.name and self.dir.exists():
            self.rename(run_name(config), store)
        self.dir.mkdir(parents=True, exist_ok=True)
        labels: dict[str, Any] = {}
        with suppress(ConfigError):
            before = self.config()
            labels = {
                field: getattr(before, field)
                for field in ("name", "note", "tags")
                if not getattr(config, field)
            }
        self.write(replace(config, **labels))

    def write(self, config: Config) -> None:
        """Write the config down, without what was a wish of one invocation."""
        whole = replace(
            config, until=None, redo=None, merge=replace(config.merge, when="auto"), sweep=Sweep()
        )
        text = yaml.dump(dump_config(whole), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
        file = self.dir / "config.yaml"
        if not file.exists() or file.read_bytes() != text.encode():
            part = self.dir / f".config.yaml.{os.getpid()}"
            part.write_text(text, encoding="utf-8")
            part.rename(file)

    def names_given_up(self) -> list[str]:
        """The names in place of which a person gave it another: the recipe may still have them."""
        return list((read_json(self.dir / GIVEN_UP) or {}).get("names", ()))

    def give_up_name(self, name: str | None, new: str) -> None:
        """Note that a person calls it `new` in place of `name`."""
        names = {*self.names_given_up(), *([name] if name else [])} - {new}
        write_json(self.dir / GIVEN_UP, {"names": sorted(names)})

    def rename(self, name: str, store: Store) -> None:
        """Give the directory another name. Raises ConfigError while something of the run is being built,
        or when the name is taken.
        """
        if name == self.dir.name:
            return
        if holder := self.holder(store):
            raise ConfigError(
                f"{self.dir.name} is running ({holder}) and can't be renamed now: stop it, or wait."
            )
        target = self.dir.with_name(name)
        if target.exists():
            raise ConfigError(f"{target} is there already, so {self.dir.name} can't be renamed to it.")
        # a clean of somebody else's waits until the note says where the run is now
        with store.shared(sorted(references.linked_keys(store, self.dir))):
            note = references.note_file(store, self.dir)
            self.dir = self.dir.rename(target)
            references.write_note(store, self.dir)
            note.unlink(missing_ok=True)

    def holder(self, store: Store) -> str | None:
        """Who builds something of this run now, as host:pid."""
        return next(
            (
                holder
                for key in sorted(references.linked_keys(store, self.dir))
                if (holder := store.holder(key))
            ),
            None,
        )

    def config(self) -> Config:
        """The config that the run was made with. Raises ConfigError when the file is not one."""
        file = self.dir / "config.yaml"
        try:
            return build_config(yaml.load(file.read_text(encoding="utf-8"), Loader=Loader))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{file} can't be read: {' '.join(str(error).split())}") from error

    @property
    def begun(self) -> bool:
        """Whether anything was made of what it reads, or is being brought: not where its input failed."""
        for link in self.dir.iterdir():
            with suppress(OSError):  # no link, or gone this moment
                brought = ".partial" not in link.readlink().parts or not link.exists()
                if link.name not in ("base", "adapter") and not (link.name.startswith("fetch_") and brought):
                    return True
        return False

    def used(self) -> float:
        """When something last ran here, in seconds since 1970."""
        file = next(
            (file for file in (self.dir / "log", self.dir / "config.yaml") if file.exists()), self.dir
        )
        return file.stat().st_mtime

    def trained(self) -> float:
        """When its training began or was found done, in seconds since 1970: what asks a run later, as
        `predict` does, has not trained it.
        """
        return self.path("train").lstat().st_mtime

    def path(self, stage: str) -> Path:
        """The directory of what a stage made: a link into the store."""
        return self.dir / stage

    def store(self) -> Path | None:
        """The store that the links lead into; None when there is no link."""
        for link in self.dir.iterdir():
            # into the store; report.md stays in the directory
            if link.is_symlink() and len(link.readlink().parts) > 2:
                place = self.dir / link.readlink().parent
                return Path(os.path.normpath(place.parent if place.name == ".partial" else place))
        return None

    def key(self, stage: str) -> str | None:
        """The key of the artifact that the run links for `stage`."""
        try:
            return key_of((self.dir / stage).readlink().name)
        except OSError:
            return None

    def link(self, name: str, target: Path) -> None:
        """Point to something in the store, by a relative link that survives moving the root, and note it
        there.
        """
        place = target.parent
        store = Store(place.parent if place.name == ".partial" else place)
        # before the link, and again after it, when the old target is let go
        references.write_note(store, self.dir, key_of(target.name))
        self._point(name, os.path.relpath(target, self.dir))
        references.write_note(store, self.dir)

    def unlink(self, names: Collection[str], store: Store) -> None:
        """Refer no longer to what some stages made."""
        for name in [*names, *(["report.md"] if "evaluate" in names else [])]:
            self.path(name).unlink(missing_ok=True)
        references.write_note(store, self.dir)

    def _point(self, name: str, target: str) -> None:
        link = self.dir / name
        if link.is_symlink() and str(link.readlink()) == target:
            return
        part = self.dir / f".{name}.{os.getpid()}"
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        part.rename(link)

    def show_report(self) -> None:
        """Put the report where a person looks first."""
        self._point("report.md", "evaluate/report.md")

    def log(self, line: str, *, shown: bool = False) -> None:
        """Append a line to the run's log; a verbose command shows it too, unless it was `shown` already."""
        if verbose() and not shown:
            print(visible(line), file=sys.stderr, flush=True)
        with (self.dir / "log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {visible(line)}\n")


def link_parent(config: Config, run: RunDirectory) -> None:
    """Link what the run reads of its parent, so that a clean leaves it alone."""
    store = store_of(config).root.resolve()
    for name, place in (("base", config.model.dir), ("adapter", config.model.adapter)):
        if place and store in Path(place).resolve().parents:
            with store_of(config).shared([Path(place).name]):
                run.link(name, Path(place))
            if not Path(place).is_dir():
                raise ConfigError(f"{place} was removed just now; run the same command again.")


def all_runs(root: Path) -> Iterator[RunDirectory]:
    """Every run under an output root."""
    for file in sorted((root / "runs").glob("*/config.yaml")):
        yield RunDirectory(file.parent)
