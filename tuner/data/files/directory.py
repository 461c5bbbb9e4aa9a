"""A directory of somebody's own → the files of it that are trained on, or held out: as a hub's data set of
these files would be read.

What its card (README.md) or the names say is of another split is never trained on. A directory has no other
rows than those of its files, so one with files of a test or validation split alone is refused, where a hub's
is taken: there, somebody named it.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuner.data.files.file_kind import PROSE
from tuner.data.files.folder_kind import describe_folder, holds_weights, is_root, short_list
from tuner.data.files.row_files import is_readable
from tuner.data.files.splits import ASIDE, CARD, choose_files, one_kind, split_of
from tuner.errors import DataError

MOST = 100_000
"""files below a directory; with more it is not the one that was meant"""
LARGE = 1 << 20
"""bytes of a card that is read"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectoryFiles:
    """What is read of a directory, and what is not."""

    folder: Path
    files: tuple[str, ...]
    """relative to it, in their order"""
    left: dict[str, str] = field(default_factory=dict)
    """the other files → the split that they are of, or nothing"""

    def describe(self, held_out: bool) -> str:
        """Both, in words; where nothing is held out yet, with how to."""
        left = [f"{path} ({split})" if split else path for path, split in self.left.items()]
        line = f"{self.folder}: took {short_list(self.files)}" + (
            f"; left {short_list(left)}" if left else ""
        )
        apart = next(
            (
                paths
                for split in ("validation", "test")
                if (paths := [path for path in self.left if self.left[path] == split])
            ),
            None,
        )
        if held_out or not apart:
            return line
        return (
            f"{line}. To measure on {'that file' if len(apart) == 1 else 'those files'}: "
            f"data.held_out_path={self.folder / apart[0] if len(apart) == 1 else self.folder}"
        )


def training_files(folder: Path) -> DirectoryFiles:
    """The files to train on. Raises DataError, with what there is."""
    paths = _paths(folder)
    _need_rows(folder, paths)
    card = folder / CARD
    text = (
        card.read_text(encoding="utf-8", errors="replace")
        if card.is_file() and card.stat().st_size <= LARGE
        else None
    )
    return _taken(
        folder,
        paths,
        choose_files(paths, None, text, str(folder), field=f"data.path='{folder}/", strict=True),
    )


def held_out_files(folder: Path) -> DirectoryFiles:
    """The files to measure on: those of the validation split, else of the test split, else those whose
    names say no split.
    """
    paths = _paths(folder)
    _need_rows(folder, paths)
    rows = [path for path in paths if is_readable(path) and not ASIDE.search(path)]
    for split in ("validation", "test", None):
        if found := [path for path in rows if split_of(path) == split]:
            return _taken(folder, paths, one_kind(found, str(folder), f"data.held_out_path='{folder}/"))
    raise DataError(
        f"data.held_out_path: {folder} holds {short_list(rows)}, and nothing to measure on that isn't for "
        "training."
    )


def _taken(folder: Path, paths: Sequence[str], found: Sequence[str]) -> DirectoryFiles:
    left = {
        path: (split_of(path) or "" if is_readable(path) else "") for path in paths if path not in set(found)
    }
    first = sorted(left, key=lambda path: (not left[path], not is_readable(path), path))
    return DirectoryFiles(folder=folder, files=tuple(found), left={path: left[path] for path in first})


def _paths(folder: Path) -> list[str]:
    """The files below a directory, hidden ones left out, in the order of their names."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        inside = Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in names if not name.startswith(".")]
        if len(found) > MOST:
            raise DataError(
                f"data.path: {folder} holds more than {MOST:,} files. Name the directory of the data, or its "
                "files."
            )
    return sorted(found)


def _need_rows(folder: Path, paths: Sequence[str]) -> None:
    """Raise DataError where no file is one of rows by its name."""
    settings = ".json" if holds_weights(paths) else "\0"
    rows = [
        path for path in paths if is_readable(path) and not ASIDE.search(path) and not path.endswith(settings)
    ]
    if rows and not is_root(folder):
        return
    endings = Counter(
        Path(path).suffix
        for path in paths
        if path.lower().endswith(PROSE) and not ASIDE.search(path) and "/" not in path and path != CARD
    )
    hint = (
        f" Texts are named by a pattern, as in data.path='{folder}/*{endings.most_common(1)[0][0]}'."
        if endings
        else ""
    )
    raise DataError(
        f"data.path: {folder} is a directory without files of rows (JSONL, JSON, CSV, Parquet, Arrow, text). "
        f"{describe_folder(folder)}{hint}"
    )
