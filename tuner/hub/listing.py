"""Files of a hub: which there are in a repository at one commit, what is known of each, and what they are
called here. Nothing is asked or brought.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import DataError
from tuner.files import PIECE
from tuner.hub.lockfile import Pin, Pinned


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file of a hub."""

    path: str
    """in its repository"""
    url: str
    size: int | None = None
    """in bytes"""
    sha256: str | None = None
    """of its content, in hex"""
    blob: str | None = None
    """else the name that git gives its content: sha1 of `blob SIZE\\0` and the content"""
    revision: str | None = None
    """the commit to ask for it, where that is not the repository's"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    def pin(self, paths: Iterable[str], layout: str | None = None) -> Pin:
        """What the lock says of some of the files, in this order."""
        by_path = {remote.path: remote for remote in self.files}
        return Pin(
            commit=self.commit,
            files={path: _pinned(by_path[path], self.commit) for path in paths},
            layout=layout,
        )


def _pinned(remote: RemoteFile, commit: str) -> Pinned:
    revision = remote.revision if remote.revision != commit else None
    return Pinned(size=remote.size, sha256=remote.sha256, blob=remote.blob, revision=revision)


def remote_file(path: str, pinned: Pinned, url: str) -> RemoteFile:
    """A file of the lock, where it is now."""
    return RemoteFile(
        path=path, url=url, size=pinned.size, sha256=pinned.sha256, blob=pinned.blob, revision=pinned.revision
    )


def check_names(names: Iterable[str]) -> None:
    """Raise DataError for a name that would lie outside its directory, or that hides in it."""
    for name in names:
        if not name.isprintable() or any(part.startswith(".") or not part for part in name.split("/")):
            raise DataError(
                f"a file of the hub is called {name!r}, which would lie outside its directory or be hidden "
                "in it; it is not taken. Take the repository from a source that you trust."
            )


def is_intact(file: Path, known: RemoteFile | Pinned, tick: Callable[[int], object] = lambda _: None) -> bool:
    """Whether a file is what the hub describes, as far as it does; `tick` as sha256_of has it."""
    size = file.stat().st_size
    if known.size is not None and size != known.size:
        return False
    if not (known.sha256 or known.blob):
        return True
    with file.open("rb") as stream:

        def pieces() -> Iterator[bytes]:
            while piece := stream.read(PIECE):
                yield piece
                tick(len(piece))

        return digest_of(pieces(), size, known) == (known.sha256 or known.blob)


def digest_of(pieces: Iterable[bytes], size: int, known: RemoteFile | Pinned) -> str | None:
    """The digest of a content, by the rule of the one that is known of it; None where none is."""
    if not (known.sha256 or known.blob):
        return None
    digest = hashlib.sha256() if known.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def local_names(paths: Sequence[str], prefix: str = "") -> dict[str, str]:
    """Name in a directory → path in a repository; the names keep the order.

    >>> local_names(["data/train-0.parquet", "b.jsonl"], "p01-")
    {'p01-0000-data-train-0.parquet': 'data/train-0.parquet', 'p01-0001-b.jsonl': 'b.jsonl'}
    """
    return {f"{prefix}{number:04d}-{_flatten(path)}": path for number, path in enumerate(paths)}


def _flatten(path: str) -> str:
    # A name may have 255 bytes; its end says what it is.
    flat = "".join(letter if letter.isprintable() else "_" for letter in path.replace("/", "-"))
    return flat.encode()[-200:].decode(errors="ignore")
