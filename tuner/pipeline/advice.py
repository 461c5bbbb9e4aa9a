"""Command lines that errors and results propose: as they can be pasted, with the root where it is not the
default.
"""

import shlex
from pathlib import Path

from tuner.config.schema import Config
from tuner.pipeline.run import RunDirectory


def command(*words: str, root: str | Path, store: str | None = None) -> str:
    """A command about what lies under a root.

    >>> command("clean", root="outputs"), command("clean", root="/data/my runs")
    ('python -m tuner clean', "python -m tuner clean 'root=/data/my runs'")
    """
    places = [f"root={root}"] if str(root) != Config().root else []
    places += [f"store={store}"] if store else []
    return " ".join(["python -m tuner", *words, *map(shlex.quote, places)])


def command_on(run: RunDirectory, verb: str, *more: str) -> str:
    """A verb on a run, which is called by its digest; by its path where it lies under no root."""
    home = run.dir.parent
    if home.name != "runs":
        return command(verb, shlex.quote(str(run.dir)), *more, root=Config().root)
    return command(verb, run.digest, *more, root=home.parent)
