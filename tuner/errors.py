"""Every exception that `tuner` raises on purpose, and the exit code each one ends with; and what was probably
meant.

    TunerError                 one paragraph for the person, no traceback      exit
    ├── ConfigError            a field, an override, a recipe, a YAML              2
    ├── DataError              rows, files, a tokenizer, a checkpoint              2
    ├── StoreError             a lock, a disk, a file system                       2
    └── StageError             a stage that ran and failed                         1
    Interrupted                stopped by a signal; the same command continues    75
    └── Stopped                by `stop`: this run only, a sweep goes on          75

Interrupted is no Exception, as KeyboardInterrupt is none: whoever handles what a row or a library may raise
must not take a stop for it. Anything else is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class TunerError(Exception):
    """Something a person can mend. The message says what was found, what was expected and what mends it."""

    exit_code = 1


class ConfigError(TunerError):
    """The config is wrong: an unknown field or option, a value of the wrong type, values that contradict."""

    exit_code = 2


class DataError(TunerError):
    """What the config points at is wrong: a missing file, a bad row, a model directory without tokenizer."""

    exit_code = 2


class StoreError(TunerError):
    """The output root can't be used: not writable, no locks, no space."""

    exit_code = 2


class StageError(TunerError):
    """A stage ran and failed: a loss that is not finite, a process that was killed."""


class Interrupted(BaseException):
    """A signal asked the run to stop; what was done is kept and the same command continues."""

    exit_code = 75


class Stopped(Interrupted):
    """A person asked this run to stop training; what was done is kept and can be used, and the same
    command continues.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names what was probably meant, or nothing.

    >>> did_you_mean("trian", ["train", "merge"])
    ' Did you mean train?'
    """
    names = sorted(known)
    tails = [n for n in names if "." in word and n.endswith(f".{word.rsplit('.', 1)[-1]}")]
    close = (
        difflib.get_close_matches(word, names, n=1, cutoff=0.7)
        or tails
        or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    )
    return f" Did you mean {close[0]}?" if close else ""


def in_one_line(error: BaseException) -> str:
    """What a library's error is and the first line of what it says.

    >>> in_one_line(RuntimeError("no compiler\\nat all"))
    'RuntimeError: no compiler'
    """
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
