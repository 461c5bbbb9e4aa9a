"""Where rows come from: local files, or files that an installed package carries → (line, row), streamed.

A file is JSONL (a value a line) or one JSON list; its content says which, not its name. Adding a kind of file = one function
like `_lines` that yields (number, row) and puts what it can't read into `bad`.
"""

import difflib
import glob
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError, DataError

NAMED = 10
"""bad rows that an error names"""


def locate(paths: Sequence[str], package: str | None = None) -> dict[str, Path]:
    """Name → file, for each of `paths` in turn: a file, or a pattern (`*`, `?`, `[…]`, `**`) whose matches come in the order of their names.

    `~` is the home directory; a relative path starts at the current directory, or inside `package` where one is given.
    A name is the file's own, numbered where there are several, so that their order stays with them.
    Raises DataError, naming what lies near, when a file is missing.
    """
    folder = Path.cwd() if package is None else _package(package)
    files = [file for path in paths for file in _match(folder, path)]
    for file in files:
        if file.is_dir():
            raise DataError(f"{file} is a directory; the data is read from files. Name them by a pattern, as in data.path='{file / '*.jsonl'}'.")
    if len(files) == 1:
        return {files[0].name: files[0]}
    return {f"{number:04d}-{file.name}": file for number, file in enumerate(files)}


def _match(folder: Path, path: str) -> list[Path]:
    file = folder / Path(path).expanduser()
    if file.exists():  # first, since a file may well be called "2026[1].jsonl"
        return [file]
    found = sorted(Path(name) for name in glob.glob(str(file), recursive=True)) if glob.has_magic(path) else []  # noqa: PTH207 (absolute patterns)
    if not found:
        raise DataError(f"data.path: no file {path!r} in {folder}. {_nearest(file)}")
    return found


def _nearest(file: Path) -> str:
    if not file.parent.is_dir():
        return f"There is no directory {file.parent} either."
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.is_file())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    data = [name for name in names if name.endswith((".jsonl", ".json"))]
    return f"{file.parent} holds {', '.join(data[:5])}{' …' if len(data) > 5 else ''}." if data else f"{file.parent} holds no JSONL or JSON file."


def _package(name: str) -> Path:
    """The directory of an installed package, which is not imported: importing would run its code."""
    root, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except ValueError:  # a module without spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"data.package: no package {name!r} is installed here. Install it, or use data=local data.path=FILE.")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*inner)


def read(file: Path) -> Iterator[tuple[int, Any]]:
    """The rows of one file, each with its line (JSONL) or its number in the list (JSON), from 1.

    Raises DataError naming the first ten lines that are no JSON, once they were met or the file has ended.
    """
    bad: list[str] = []
    yield from _document(file) if _is_document(file) else _lines(file, bad)
    refuse(bad)


def refuse(bad: Sequence[str]) -> None:
    """Raise DataError for the rows described in `bad`, when there are any."""
    if bad:
        more = "" if len(bad) < NAMED else " (there may be more: only the first are named)"
        raise DataError(f"{len(bad)} row{'s' if len(bad) > 1 else ''} can't be used{more}:\n  " + "\n  ".join(bad) + "\nMend or remove them.")


def _is_document(file: Path) -> bool:
    """Whether the file is one JSON list, and not a value a line.

    A line that is a list of turns is a row (the bare form of OpenAI's messages); a list of anything else is the data set.
    """
    with _open(file) as lines:
        first = next((line for line in lines if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").strip()
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # the first line of a list that goes on; a broken line of turns would have its end
        return first.startswith(b"[") and (first.startswith(b"[[") or not first.endswith(b"]"))
    return isinstance(value, list) and not (value and isinstance(value[0], dict) and value[0].keys() >= {"role", "content"})


def _lines(file: Path, bad: list[str]) -> Iterator[tuple[int, Any]]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not line:
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                bad.append(f"{file}:{number}: {_why(error)}")
                if len(bad) == NAMED:
                    return
            else:
                yield number, row


def _document(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(file.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}:{error.lineno}: {_why(error)}. The file starts like one JSON list; mend it, or write one row a line (JSONL)."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: {_why(error)}.") from error
    yield from enumerate(rows, start=1)


def _why(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return f"no valid JSON ({error.msg} at column {error.colno})"
        case UnicodeDecodeError():
            return f"no valid UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); save the file as UTF-8"
        case RecursionError():
            return "JSON nested too deeply"
        case _:
            return f"no valid JSON ({error})"


def _open(file: Path) -> Any:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror}).") from error
