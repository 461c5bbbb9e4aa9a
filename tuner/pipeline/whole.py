"""Whether an artifact has all that its stage leaves: a cleaner of /tmp, or a hand, may have taken files away
while it was made.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.config.view import View
from tuner.errors import DataError, StageError
from tuner.pipeline.stage import Stage


def lacking(stage: Stage, view: View, directory: Path, facts: Mapping[str, Any]) -> str | None:
    """What an artifact in `directory` lacks, in words, if it does."""
    try:
        gone = [name for name in stage.must_have(view, directory, facts) if not (directory / name).is_file()]
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or directory} can't be read: {error.strerror}"
    return f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} missing" if gone else None


@contextmanager
def held_directory(directory: Path) -> Iterator[int]:
    """A descriptor of a directory that a stage is about to fill."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield held
    finally:
        os.close(held)


def refuse_incomplete(stage: Stage, view: View, directory: Path, held: int, facts: Mapping[str, Any]) -> None:
    """Raise StageError where the directory that `stage` has filled is not the one that is `held`, or lacks a
    file that the stage must leave.
    """
    refuse_another(stage, directory, held)
    if problem := lacking(stage, view, directory, facts):
        raise _lost(stage, directory, problem)


def refuse_another(stage: Stage, directory: Path, held: int) -> None:
    """Raise StageError where the directory that `stage` fills is not the one that is `held`."""
    try:
        same = os.path.samestat(directory.stat(), os.fstat(held))
    except FileNotFoundError:
        same = False
    if not same:
        raise _lost(stage, directory, f"the directory {directory} was removed")


def _lost(stage: Stage, directory: Path, problem: str) -> StageError:
    return StageError(
        f"What {stage.name} made is not whole: {problem}. Something removes files under "
        f"{directory.parent.parent} while runs write there, as cleaners of /tmp do. Choose another place "
        "with root=DIR, or run the same command again."
    )
