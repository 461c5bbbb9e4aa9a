"""A run for a look."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tuner.pipeline.run import RunDirectory
from tuner.store import references
from tuner.store.artifacts import Store


@contextmanager
def passing_run(store: Store) -> Iterator[RunDirectory]:
    """A run that refers to what it uses, leaves nothing under the root, and goes again."""
    with TemporaryDirectory(prefix="tuner-") as place:
        run = RunDirectory(Path(place))
        try:
            yield run
        finally:
            references.note_file(store, run.dir).unlink(missing_ok=True)
