"""What libraries and the system raise, told from our own faults: what a person can mend is a paragraph,
anything else keeps its traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.errors import DataError, StoreError, TunerError, in_one_line
from tuner.files import disk_full

NOTE = "while reading "
"""how an error's note of what was read begins"""
SYSTEM = {
    errno.EACCES: "may not be used by this user: mend its permissions, or choose another place",
    errno.EPERM: "may not be changed by this user: mend its permissions, or choose another place",
    errno.EROFS: "lies on a file system that is mounted read-only: choose another place",
    errno.ENAMETOOLONG: "has a name that is longer than the file system takes: choose a shorter one",
    errno.ELOOP: "is a link that leads to itself: remove it",
    errno.ENOTDIR: "goes through a file, where a directory should be: choose another place",
    errno.EMFILE: "can't be opened, since this process may open no more files: raise the limit (ulimit -n)",
    errno.ENFILE: "can't be opened, since this machine may open no more files: end what has opened them",
    errno.EFBIG: "may not grow further: raise the limit (ulimit -f), or choose another file system",
    errno.EIO: "can't be read or written: its disk, or the network behind it, reports an error",
    errno.ESTALE: "is gone from the network's file system: run the same command again",
}
"""what a person can do about an error of the system (errno(3))"""


@contextmanager
def fault_of(what: str) -> Iterator[None]:
    """An error that comes up while `what`, a stranger's, is read carries a note of it, by which `mistake`
    knows it.
    """
    try:
        yield
    except BaseException as error:
        if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(f"{NOTE}{what}")
        raise


def mistake(error: BaseException) -> TunerError | None:
    """An error as what a person can mend: trouble of the system, or what a library raised while something of
    strangers was read. None for any other error.
    """
    if isinstance(error, TunerError):
        return error
    if disk_full(error):
        return StoreError(
            f"The disk is full: {error}. What was finished is kept; make space (tuner clean) and run the "
            "same command again."
        )
    if isinstance(error, OSError) and (found := _of_system(error)):
        return found
    # the Rust side raises BaseException where it panics
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        for note in getattr(error, "__notes__", ()):
            if note.startswith(NOTE):
                why = "MemoryError" if isinstance(error, MemoryError) else in_one_line(error).rstrip(".")
                return DataError(f"{note.removeprefix(NOTE)} can't be read ({why}). Get it again.")
    return None


def _of_system(error: OSError) -> StoreError | None:
    name = error.filename if error.filename2 is None else error.filename2
    if error.errno in SYSTEM:
        return StoreError(f"{name or 'A file'} {SYSTEM[error.errno]} ({error.strerror}).")
    if error.errno == errno.ENOENT and isinstance(name, str) and not Path(name).parent.is_dir():
        return StoreError(
            f"{Path(name).parent} was removed while it was used. Run the same command again, which makes "
            "what is missing."
        )
    return None
