"""The store: artifacts under the digest of what they were made from, published whole or not at all.

    store/<stage>-<fp12>/     files and manifest.json: published by one rename, never written again
    store/.partial/<key>/     what is being built; `.partial/<key>.json` says from what
    store/.locks/<key>        who builds it holds it alone, who reads it holds it together with others
                              (tuner/store/locks.py)
    store/.trash/             what was replaced
    store/.hashes/            sha256 of files by path, size, times and inode
    store/.refs/              what each run refers to (tuner/store/references.py)

A store whose directory its group may write into is shared: all of the group may read what is in it and add to
it, and an artifact can only be replaced or removed by whoever made it.

Standard library only, so that a plan costs milliseconds.
"""

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tuner.errors import StoreError
from tuner.files import (
    decode_json,
    drop_leftovers,
    foreign_owner,
    group_of,
    open_to_group,
    read_json,
    sync_to_disk,
    write_json,
)
from tuner.store import locks
from tuner.store.digests import content_digest
from tuner.store.hashes import FileHashes, hash_file
from tuner.store.manifest import MANIFEST, is_manifest

FOLDERS = (".partial", ".locks", ".trash", ".hashes", ".refs")


def key_of(name: str) -> str:
    """The key of an artifact by the name of its directory, or of a partial directory or note of it.

    >>> key_of("train-0a1b2c3d4e5f"), key_of("train-0a1b2c3d4e5f-u1000.json")
    ('train-0a1b2c3d4e5f', 'train-0a1b2c3d4e5f')
    """
    return re.sub(r"-u\d+\Z", "", name.lstrip(".").partition(".")[0])


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def content(self) -> str:
        digest: str = self.manifest["content"]
        return digest

    def size(self) -> int:
        """Bytes of its own files; referenced ones are the person's."""
        return sum(entry["size"] for entry in self.manifest["files"].values())


class Store:
    """One directory of artifacts, shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes = FileHashes(root)

    # Reading: nothing here writes, so that a plan can look at a store it may not touch.

    def find(self, key: str) -> Artifact | None:
        """The artifact published under `key`. A manifest that can't be read counts as none: it was
        damaged.
        """
        path = self.root / key
        try:
            manifest = decode_json((path / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        return Artifact(path, manifest) if is_manifest(manifest) else None

    def all(self, stage: str = "") -> Iterator[Artifact]:
        """Every artifact, or those of one stage."""
        for path in sorted(self.root.glob(f"{stage}-*" if stage else "[!.]*-*")):
            if (artifact := self.find(path.name)) and (not stage or artifact.manifest["stage"] == stage):
                yield artifact

    def damage(self, artifact: Artifact, *, deep: bool = False) -> str | None:
        """What is wrong with an artifact's own files, or None. `deep` reads them all; otherwise only those
        whose stat changed.
        """
        for name, entry in artifact.manifest["files"].items():
            path = artifact.path / name
            try:
                status = path.stat()
            except OSError:
                return f"{name} is missing"
            if status.st_size != entry["size"]:
                return f"{name} has {status.st_size} bytes instead of {entry['size']}"
            touched = [status.st_mtime_ns, status.st_ctime_ns] != entry["times"]
            if (touched or deep) and self.hashes.sha256(path, fresh=deep) != entry["sha256"]:
                return f"{name} has other content than was written"
        return None

    def holder(self, key: str) -> str | None:
        """Who holds the lock of `key` now, as host:pid, or None."""
        return locks.holder(self.root / ".locks" / key)

    def partial(self, key: str) -> Path:
        """Where `key` is being built by this user: beside what another user left in a shared store, which
        is theirs.
        """
        path = self.root / ".partial" / key
        own = path.with_name(f"{key}-u{os.geteuid()}")
        if self.group() is not None and (own.exists() or foreign_owner(path) or foreign_owner(_note(path))):
            return own
        return path

    def group(self) -> int | None:
        """The id of the group that shares the store; None for a store of one user's own."""
        return group_of(self.root)

    def owner(self, key: str) -> str | None:
        """Whom the artifact belongs to, when it may only be replaced or removed by them."""
        return foreign_owner(self.root / key) if self.group() is not None else None

    def guarded(self) -> bool:
        """Whether nobody else of a shared store's group can rename our artifacts: its directory is sticky,
        which only its owner can make it.
        """
        return self.group() is None or bool(self.root.stat().st_mode & stat.S_ISVTX)

    # Writing.

    def open(self) -> None:
        """Make the store, and refuse a file system on which its promises would not hold."""
        with suppress(OSError):  # where there is no /proc, nobody can tell
            mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
            if trouble := locks.lock_trouble(mounts, Path(os.path.realpath(self.root))):
                raise StoreError(trouble)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if (group := self.group()) is not None:
                self._share(group)
            for name in FOLDERS:
                (self.root / name).mkdir(exist_ok=True)
            locks.check_locks(self.root / ".locks")
        except OSError as error:
            raise StoreError(
                f"The output root can't be written to: {error.strerror} ({error.filename or self.root}). "
                "Choose another with root=DIR or store=DIR, or correct its permissions."
            ) from error

    def _share(self, group: int) -> None:
        """Let the group in. The sticky bit keeps everybody from renaming or removing what is another's."""
        # What a child leaves unfinished shall be readable by the group too, and a library may make files as
        # it likes; what others may
        # do stays as the person has it, but for writing.
        os.umask(os.umask(0o077) & ~0o070 | 0o022)
        for folder in [self.root / name for name in FOLDERS]:
            folder.mkdir(exist_ok=True)
            if not foreign_owner(folder):
                os.chown(folder, -1, group)
                folder.chmod(0o770 | stat.S_ISGID | stat.S_ISVTX)
            elif not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(
                    errno.EACCES,
                    f"{foreign_owner(folder)} keeps others out; they can fix it with: chmod 3770",
                    str(folder),
                )
        if not foreign_owner(self.root):
            self.root.chmod(stat.S_IMODE(self.root.stat().st_mode) | stat.S_ISVTX)

    def lock(self, key: str, waiting: Callable[[str], None]) -> AbstractContextManager[int]:
        """Hold the lock of `key` alone; yields its descriptor, so that a child can keep holding it when
        its parent dies.
        """
        return locks.exclusive(self.root / ".locks" / key, waiting, group=self.group() is not None)

    def lock_unless(
        self, key: str, waiting: Callable[[str], None], needless: Callable[[], bool]
    ) -> AbstractContextManager[int | None]:
        """The same, but for None when the lock is `needless` while another holds it."""
        path = self.root / ".locks" / key
        return locks.exclusive_unless(path, waiting, needless, group=self.group() is not None)

    def lock_at_once(self, key: str) -> AbstractContextManager[bool]:
        """Hold the lock of `key` alone if nobody else has it; yields whether that is so."""
        return locks.try_exclusive(self.root / ".locks" / key, group=self.group() is not None)

    def shared(self, keys: Sequence[str]) -> AbstractContextManager[list[int]]:
        """Hold the locks of `keys` together with other readers, so that nobody removes these artifacts;
        yields the descriptors.
        """
        return locks.shared([self.root / ".locks" / key for key in keys], group=self.group() is not None)

    def begin(self, key: str, origin: Mapping[str, Any], *, resume: bool) -> Path:
        """The directory to build `key` in. With `resume`, what a killed process left stays, if it was made
        from the same.
        """
        self._refuse_foreign(key)  # now, and not after the work
        path = self.partial(key)
        if not (resume and read_json(_note(path)) == origin):
            self.drop(key)
        path.mkdir(exist_ok=True)
        write_json(_note(path), origin)
        return path

    def drop(self, key: str) -> None:
        """Forget what was being built. The note goes first: without it nothing is ever continued."""
        path = self.partial(key)
        _note(path).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def publish(self, key: str, manifest: Mapping[str, Any], journal: tuple[str, ...]) -> Artifact:
        """Publish what lies in the partial directory of `key`: hash, manifest last, fsync, one rename."""
        partial = self.partial(key)
        drop_leftovers(partial)
        if (group := self.group()) is not None:
            for path in [partial, *partial.rglob("*")]:
                open_to_group(path, group)
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in partial.rglob("*") if p.is_file()):
            sync_to_disk(path)
            status = path.stat()
            files[path.relative_to(partial).as_posix()] = {
                "sha256": hash_file(path),
                "size": status.st_size,
                "times": [status.st_mtime_ns, status.st_ctime_ns],
            }
        content = {
            name: entry["sha256"]
            for name, entry in files.items()
            if not any(fnmatch(name, pattern) for pattern in journal)
        }
        content |= {name: entry["sha256"] for name, entry in manifest["references"].items()}
        write_json(
            partial / MANIFEST, {**manifest, "files": files, "content": content_digest(content)}, indent=1
        )
        for directory in [partial, *(p for p in partial.rglob("*") if p.is_dir())]:
            sync_to_disk(directory)
        if group is not None:
            open_to_group(partial / MANIFEST, group)
        self.trash(key)
        partial.rename(self.root / key)
        sync_to_disk(self.root)
        _note(partial).unlink(missing_ok=True)
        artifact = self.find(key)
        if artifact is None:
            raise StoreError(f"{key} was published to {self.root}, but can't be read back.")
        return artifact

    def trash(self, key: str) -> Path | None:
        """Move a published artifact out of the way, by one rename; returns where it is now, or None when
        there was none.
        """
        self._refuse_foreign(key)
        target = self.root / ".trash" / f"{key}-{time.time_ns()}"
        try:
            (self.root / key).rename(target)
        except FileNotFoundError:
            return None
        return target

    def _refuse_foreign(self, key: str) -> None:
        if other := self.owner(key):
            raise StoreError(
                f"{key} in the shared store {self.root} belongs to {other}, and only they can replace it. "
                "Ask them to build it again, give your run a variant=NAME of its own (which trains apart "
                "from theirs), or use a store of your own with store=DIR."
            )


def _note(partial: Path) -> Path:
    """What says from what a partial directory is made: beside it."""
    return partial.with_name(f"{partial.name}.json")
