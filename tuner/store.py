"""The store: artifacts under the digest of what they were made from, published whole or not at all.

    store/<stage>-<fp12>/     files and manifest.json: published by one rename, never written again
    store/.partial/<key>/     what is being built; `.partial/<key>.json` says from what
    store/.locks/<key>        flock; holds who has it; never unlinked, since a lock on an unlinked file guards nothing
    store/.trash/             what was replaced
    store/.hashes/            sha256 of files by path, size, times and inode

Standard library only, so that a plan costs milliseconds.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tuner.disk import drop_leftovers, identity, read_json, sha256_of, sync, write_json
from tuner.errors import StoreError

MANIFEST = "manifest.json"


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8.

    >>> canonical({"b": 1.0, "a": "é"})
    b'{"a":"\\xc3\\xa9","b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def content_digest(hashes: Mapping[str, str]) -> str:
    """The digest of a set of files: of their names and contents, not of where they lie."""
    return digest(dict(hashes))


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
        self._read: dict[Path, tuple[list[int], str]] = {}

    # Reading: nothing here writes, so that a plan can look at a store it may not touch.

    def find(self, key: str) -> Artifact | None:
        """The artifact published under `key`. A manifest that can't be read counts as none: it was damaged."""
        path = self.root / key
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            manifest["content"], manifest["files"], manifest["fingerprint"], manifest["upstream"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Artifact(path, manifest)

    def all(self, stage: str = "") -> Iterator[Artifact]:
        """Every artifact, or those of one stage."""
        for path in sorted(self.root.glob(f"{stage}-*" if stage else "[!.]*-*")):
            if (artifact := self.find(path.name)) and (not stage or artifact.manifest["stage"] == stage):
                yield artifact

    def damage(self, artifact: Artifact, *, deep: bool = False) -> str | None:
        """What is wrong with an artifact's own files, or None. `deep` reads them all; otherwise only those whose stat changed."""
        for name, entry in artifact.manifest["files"].items():
            path = artifact.path / name
            try:
                stat = path.stat()
            except OSError:
                return f"{name} is missing"
            if stat.st_size != entry["size"]:
                return f"{name} has {stat.st_size} bytes instead of {entry['size']}"
            touched = [stat.st_mtime_ns, stat.st_ctime_ns] != entry["times"]
            if (touched or deep) and self.sha256(path, fresh=deep) != entry["sha256"]:
                return f"{name} has other content than was written"
        return None

    def sha256(self, path: Path, *, fresh: bool = False) -> str:
        """A file's sha256, remembered by path, size, times and inode; `fresh` trusts only what this object has read itself."""
        memo = self.root / ".hashes" / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        before = identity(path)
        if (read := self._read.get(path)) and read[0] == before:
            return read[1]
        if not fresh and (known := read_json(memo)) and known.get("file") == before:
            sha: str = known["sha256"]
            return sha
        sha = sha256_of(path)
        # A file written to in the last tick of the clock could change again without a change of its times: not remembered.
        if identity(path) != before or time.time_ns() - before[2] <= 50_000_000:
            return sha
        self._read[path] = (before, sha)
        if memo.parent.is_dir():
            with suppress(OSError):  # a memory only: a full disk or another user's store costs time, not the run
                write_json(memo, {"file": before, "sha256": sha})
        return sha

    def hashed(self, path: Path) -> bool:
        """Whether `sha256` would answer at once."""
        memo = self.root / ".hashes" / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        return (read_json(memo) or {}).get("file") == identity(path)

    def holder(self, key: str) -> str | None:
        """Who holds the lock of `key` now, as host:pid, or None."""
        try:
            fd = os.open(self.root / ".locks" / key, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.read(fd, 200).decode(errors="replace").strip() or "another process"
        except OSError:
            return None
        finally:
            os.close(fd)
        return None

    def partial(self, key: str) -> Path:
        """Where `key` is being built."""
        return self.root / ".partial" / key

    # Writing.

    def open(self) -> None:
        """Make the store, and refuse a file system on which its promises would not hold."""
        try:
            for name in (".partial", ".locks", ".trash", ".hashes"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / ".locks" / f".probe-{os.getpid()}"
            first, second = (os.open(probe, os.O_RDWR | os.O_CREAT) for _ in range(2))
        except OSError as error:
            raise StoreError(
                f"The output root can't be written to: {error.strerror} ({self.root}). Choose another with root=DIR, or mend its permissions."
            ) from error
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            raise StoreError(
                f"Locks do nothing on the file system of {self.root}: two processes could build the same artifact over each other. Put the store on a local disk with store=DIR."
            )
        except OSError as error:
            raise StoreError(
                f"The file system of {self.root} has no locks ({error.strerror}); on NFS they need the lock service. Put the store on a local disk with store=DIR."
            ) from error
        finally:
            os.close(first)
            os.close(second)
            probe.unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str, waiting: Callable[[str], None]) -> Iterator[int]:
        """Hold the lock of `key`; yields its descriptor, so that a child can keep holding it when its parent dies."""
        fd = os.open(self.root / ".locks" / key, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            told = False
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        waiting(os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process")
                        told = True
                    time.sleep(0.1)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{socket.gethostname()}:{os.getpid()}".encode(), 0)
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def shared(self, keys: Sequence[str]) -> Iterator[list[int]]:
        """Hold the locks of `keys` together with other readers, so that nobody removes these artifacts; yields the descriptors."""
        fds: list[int] = []
        try:
            for key in keys:
                fds.append(os.open(self.root / ".locks" / key, os.O_RDWR | os.O_CREAT, 0o666))
                fcntl.flock(fds[-1], fcntl.LOCK_SH)
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def begin(self, key: str, origin: Mapping[str, Any], *, resume: bool) -> Path:
        """The directory to build `key` in. With `resume`, what a killed process left stays, if it was made from the same."""
        path, note = self.partial(key), self.root / ".partial" / f"{key}.json"
        if not (resume and read_json(note) == origin):
            self.drop(key)
        path.mkdir(exist_ok=True)
        write_json(note, origin)
        return path

    def drop(self, key: str) -> None:
        """Forget what was being built. The note goes first: without it nothing is ever continued."""
        (self.root / ".partial" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.partial(key), ignore_errors=True)

    def publish(self, key: str, manifest: Mapping[str, Any], journal: tuple[str, ...]) -> Artifact:
        """Publish what lies in the partial directory of `key`: hash, manifest last, fsync, one rename."""
        partial = self.partial(key)
        drop_leftovers(partial)
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in partial.rglob("*") if p.is_file()):
            sync(path)
            stat = path.stat()
            files[path.relative_to(partial).as_posix()] = {
                "sha256": sha256_of(path),
                "size": stat.st_size,
                "times": [stat.st_mtime_ns, stat.st_ctime_ns],
            }
        content = {name: entry["sha256"] for name, entry in files.items() if not any(fnmatch(name, pattern) for pattern in journal)}
        content |= {name: entry["sha256"] for name, entry in manifest["references"].items()}
        write_json(partial / MANIFEST, {**manifest, "files": files, "content": content_digest(content)}, indent=1)
        for directory in [partial, *(p for p in partial.rglob("*") if p.is_dir())]:
            sync(directory)
        self.trash(key)
        partial.rename(self.root / key)
        sync(self.root)
        (self.root / ".partial" / f"{key}.json").unlink(missing_ok=True)
        artifact = self.find(key)
        if artifact is None:
            raise StoreError(f"{key} was published to {self.root}, but can't be read back.")
        return artifact

    def trash(self, key: str) -> Path | None:
        """Move a published artifact out of the way, by one rename; returns where it is now, or None when there was none."""
        target = self.root / ".trash" / f"{key}-{time.time_ns()}"
        try:
            (self.root / key).rename(target)
        except FileNotFoundError:
            return None
        return target
