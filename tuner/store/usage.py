"""What the store takes on the disk, each file counted once however many names it has: in all, for a run,
for a run alone, for nobody.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tuner.store import references
from tuner.store.artifacts import Store, key_of
from tuner.store.references import Leftover


class FileLink(NamedTuple):
    """One name of a file or directory."""

    inode: tuple[int, int]
    """device and number: the same for all names of a file"""
    size: int
    """bytes that the file takes on the disk"""
    links: int
    """how many names the file has, wherever they are"""


def file_links(path: Path) -> list[FileLink]:
    """Every name at and under a path. What vanishes meanwhile, or can't be looked into, is left out."""
    found: list[FileLink] = []
    todo = [str(path)]
    while todo:
        place = todo.pop()
        with suppress(FileNotFoundError, PermissionError):
            status = os.lstat(place)
            directory = stat.S_ISDIR(status.st_mode)
            links = 1 if directory else status.st_nlink  # a directory is linked by those in it
            found.append(
                FileLink(inode=(status.st_dev, status.st_ino), size=status.st_blocks * 512, links=links)
            )
            if directory:
                todo += [entry.path for entry in os.scandir(place)]
    return found


class DiskUsage:
    """What files take on the disk, each counted once, however many names it has."""

    def __init__(self, before: "DiskUsage | None" = None) -> None:
        self._seen: dict[tuple[int, int], tuple[int, int]] = dict(before._seen) if before else {}

    def add(self, found: Iterable[FileLink]) -> int:
        """Count names in; returns the bytes of the files of which that was the last name, which come back
        when all that was counted is removed.
        """
        complete = 0
        for name in found:
            times = self._seen.get(name.inode, (0, 0))[0] + 1
            self._seen[name.inode] = times, name.size
            complete += name.size if times == name.links else 0
        return complete

    def total(self) -> int:
        """Bytes of all files that were counted, in whole or with some of their names."""
        return sum(size for _, size in self._seen.values())


class StoreUsage:
    """Who needs how much of a store. Raises StoreError, when it is made, if that can't be known."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store = store
        self.known = references.referenced(store, root)
        self.leftovers = list(references.leftovers(store, self.known))
        self._names: dict[Path, list[FileLink]] = {}

    @cached_property
    def total(self) -> int:
        """Bytes of the store's directory with all that is in it."""
        usage = DiskUsage()
        usage.add(file_links(self.store.root))
        return usage.total()

    def free(self, chosen: Iterable[Leftover]) -> int:
        """Bytes that come back when these are removed."""
        return self._add(DiskUsage(), [path for item in chosen for path in item.paths])

    def of(self, run: Path) -> int:
        """Bytes of all that a run's directory refers to."""
        here, usage = run.resolve(), DiskUsage()
        self._add(
            usage, [path for key, runs in self.known.items() if here in runs for path in self._places(key)]
        )
        return usage.total()

    def own(self, run: Path) -> int:
        """Bytes that come back when only this run goes, and then all that no run refers to."""
        here, usage = run.resolve(), DiskUsage()
        self._add(usage, [path for item in self.leftovers for path in item.paths])
        return self._add(
            usage, [path for key, runs in self.known.items() if runs == [here] for path in self._places(key)]
        )

    def _places(self, key: str) -> list[Path]:
        """Where an artifact lies; while it is not published, where it is being built."""
        if (path := self.store.root / key).is_dir():
            return [path]
        return [path for path in (self.store.root / ".partial").glob(f"{key}*") if key_of(path.name) == key]

    def _add(self, usage: DiskUsage, paths: Sequence[Path]) -> int:
        for path in paths:
            if path not in self._names:
                self._names[path] = file_links(path)
        return sum(usage.add(self._names[path]) for path in paths)
