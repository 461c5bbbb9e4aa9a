"""Answers as they come, in a file beside the one that they are for: a killed command goes on from them.

    {"format": 1, "of": {"run": …, "rows": …, "generation.temperature": 0.0, …}}
    {"chosen": "batches", "value": [32, 16384]}
    {"model": "tuned", "rows": [[12, {"text": "…", "ended": "end"}], …]}
    …

The first line says what the answers are of. What was chosen by the way, such as how rows are put into
batches, stays with them: those of a command that goes on are the same ones, so the answers are, bit for bit.
A line is written when all of its rows are answered, and a line that was cut by a kill is dropped.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tuner.errors import ConfigError, StoreError
from tuner.files import decode_json, disk_full

FORMAT = 1
Answers = dict[int, dict[str, Any]]
"""row → its answer"""


def journal_path(out: Path) -> Path:
    """Where the answers for the file `out` are kept until all are there."""
    return out.with_name(f".{out.name}.partial")


class Journal:
    """The answers so far, held by one process.

    of   what decides the answers, by the names that people know

    Raises ConfigError where other answers are there, or another process writes them, and StoreError where
    nothing can be written.
    """

    def __init__(self, out: Path, of: Mapping[str, Any]) -> None:
        self.path, self._out = journal_path(out), out
        self.answers: dict[str, Answers] = {}
        """by model"""
        self._chosen: dict[str, Any] = {}
        try:
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise StoreError(f"{out.parent} can't be written to ({error.strerror}).") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"Another process is writing {out} at this moment. Wait for it, or name another file."
            ) from None
        try:
            self._begin({"format": FORMAT, "of": dict(of)})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.answers:
            self.finished()  # nothing would be lost
        self._file.close()

    def _begin(self, head: dict[str, Any]) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        whole = lines[:-1]  # what follows the last line end was cut by a kill
        if not whole:
            self._file.truncate(0)
            self._write(head)
            return
        known = _parsed(whole[0])
        if known.get("format") != FORMAT or known.get("of") != head["of"]:
            raise self._others(known, head)
        self._file.truncate(sum(len(line) + 1 for line in whole))
        for line in whole[1:]:
            entry = _parsed(line)
            if "chosen" in entry:
                self._chosen[entry["chosen"]] = entry["value"]
            else:
                self.answers.setdefault(entry["model"], {}).update(entry["rows"])

    def _others(self, known: Mapping[str, Any], head: Mapping[str, Any]) -> ConfigError:
        before, now = known.get("of", {}), head["of"]
        differs = [
            f"{name} is another one"
            if name.startswith("the ")
            else f"{name} was {before.get(name)} and is {now.get(name)}"
            for name in dict.fromkeys((*before, *now))
            if before.get(name) != now.get(name)
        ]
        return ConfigError(
            f"{self.path} holds answers that are not of this command: "
            f"{'; '.join(differs) or 'it is of another version'}. The command that began it goes on from "
            f"there. Name another file to write, or remove this one to begin anew: rm '{self.path}'"
        )

    def choice(self, name: str, choose: Callable[[], Any]) -> Any:
        """What was chosen when the answers were begun, or is chosen now."""
        if name not in self._chosen:
            self._chosen[name] = choose()
            self._write({"chosen": name, "value": self._chosen[name]})
        return self._chosen[name]

    def add(self, model: str, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep the answers of a batch, which a kill does not lose then. Raises StoreError for a full disk."""
        self._write({"model": model, "rows": list(answers.items())})
        self.answers.setdefault(model, {}).update({row: dict(answer) for row, answer in answers.items()})

    def _write(self, entry: Any) -> None:
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            if disk_full(error):
                raise StoreError(
                    f"The disk that holds {self._out.parent} is full. Free some space and run the same "
                    "command again: it goes on from the answers that are there."
                ) from error
            raise

    def finished(self) -> None:
        """Everything is in the file that it was for."""
        self.path.unlink(missing_ok=True)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = decode_json(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
