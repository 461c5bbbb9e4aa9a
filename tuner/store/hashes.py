"""The sha256 of files, remembered under `store/.hashes` so that a file is read once."""

import hashlib
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner.files import file_identity, group_of, read_json, sha256_of, write_json
from tuner.progress import progress_bar
from tuner.report.printable import visible


def hash_file(path: Path) -> str:
    """A file's sha256; one that takes more than a second shows how far it is."""
    with progress_bar(f"sha256 of {path.name}", path.stat().st_size, _to_stderr, after=1.0) as advance:
        return sha256_of(path, advance)


def _to_stderr(line: str) -> None:
    print(f"  {visible(line)}", file=sys.stderr, flush=True)


class FileHashes:
    """The hashes that a store remembers, and those that this process has computed."""

    def __init__(self, root: Path) -> None:
        """`root` is the store's directory."""
        self.root = root
        self._own: dict[Path, tuple[list[int], str]] = {}

    def sha256(self, path: Path, *, fresh: bool = False) -> str:
        """A file's sha256, remembered by path, size, times and inode; `fresh` trusts only what this object
        has read itself.
        """
        record = self._record_path(path)
        before = file_identity(path)
        if (read := self._own.get(path)) and read[0] == before:
            return read[1]
        if not fresh and (known := self._recorded(record)) and known.get("file") == before:
            sha: str = known["sha256"]
            return sha
        sha = hash_file(path)
        # A file written to in the last tick of the clock could change again without a change of its times:
        # not remembered.
        if file_identity(path) != before or time.time_ns() - before[2] <= 50_000_000:
            return sha
        self._own[path] = (before, sha)
        if record.parent.is_dir():
            # a memory only: a full disk or another user's store costs time, not the run
            with suppress(OSError):
                write_json(record, {"file": before, "sha256": sha})
        return sha

    def is_known(self, path: Path) -> bool:
        """Whether `sha256` would answer at once."""
        return (self._recorded(self._record_path(path)) or {}).get("file") == file_identity(path)

    def _record_path(self, path: Path) -> Path:
        """Where the hash of a file is remembered: for each user apart."""
        return (
            self.root
            / ".hashes"
            / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}-{os.geteuid()}"
        )

    def _recorded(self, record: Path) -> dict[str, Any] | None:
        """In a shared store, only what was written by this user is trusted."""
        with suppress(OSError):
            if group_of(self.root) is None or record.stat().st_uid == os.geteuid():
                return read_json(record)
        return None
