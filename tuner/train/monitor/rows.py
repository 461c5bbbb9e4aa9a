"""The rows of a metrics.jsonl, as verbs read them: standard library only."""

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.jsonl, up to the first that a killed process left half written."""
    return _rows(path.read_text(encoding="utf-8")) if path.exists() else []


def _rows(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class RowReader:
    """Reads a metrics.jsonl while it grows, each row once; a file that takes its place is read from its
    beginning.
    """

    def __init__(self) -> None:
        self._file, self._read = -1, 0

    def pass_over(self, path: Path) -> None:
        """Read nothing of the file that is there now."""
        status = path.stat()
        self._file, self._read = status.st_ino, status.st_size

    def new_rows(self, path: Path) -> list[dict[str, Any]]:
        """The rows that came since the last look; none where there is no file."""
        try:
            with path.open("rb") as file:
                status = path.stat()
                if status.st_ino != self._file or status.st_size < self._read:
                    self._file, self._read = status.st_ino, 0
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:  # it is published this moment, or gone
            return []
        self._read += len(whole) + bool(whole)
        return _rows(whole.decode("utf-8"))
