"""The run that a person means, among those under an output root, and in what runs differ."""

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError, did_you_mean
from tuner.pipeline.advice import command
from tuner.pipeline.run import RunDirectory, all_runs, recipe_words, run_name

LOOKED_INTO = 50
"""runs that a reason is told against at most, the newest: each costs a plan some milliseconds"""


def find_run(root: Path, word: str) -> RunDirectory:
    """The run that a person means: its directory, its name, its digest or the start of it, or `last`, which
    is the last that trained.

    Raises ConfigError that lists the candidates when there are several, and the nearest name when there is
    none.
    """
    path = Path(word).expanduser()
    if (path / "config.yaml").is_file():
        return RunDirectory(path)
    runs = list(all_runs(root))
    if word == "last" and runs:
        trained = [run for run in runs if run.path("train").is_symlink()]
        return max(trained, key=RunDirectory.trained) if trained else max(runs, key=RunDirectory.used)
    found = (
        [run for run in runs if run.dir.name == word]
        or [run for run in runs if run.name == word]
        or [run for run in runs if len(word) >= 3 and run.digest.startswith(word)]
    )
    if len(found) == 1:
        return found[0]
    if found:
        choice = "\n".join(
            f"  {run.dir.name}  {_ago(run.used())}{_apart(run, found)}"
            for run in sorted(found, key=RunDirectory.used)
        )
        raise ConfigError(
            f"{word} means {len(found)} runs under {root}; name one by its digest, the end of its "
            f"directory's name:\n{choice}"
        )
    there = (
        f" There are: {', '.join(run.dir.name for run in runs)}."
        if runs
        else f" There are none; start one with: {command(root=root)}"
    )
    raise ConfigError(
        f"{word} is no run under "
        f"{root}.{did_you_mean(word, {name for run in runs for name in (run.dir.name, run.name)})}{there}"
    )


def _ago(time_used: float) -> str:
    minutes = (time.time() - time_used) / 60
    return (
        f"{minutes:.0f} min ago"
        if minutes < 90
        else f"{minutes / 60:.0f} h ago"
        if minutes < 2880
        else f"{minutes / 1440:.0f} days ago"
    )


def _apart(run: RunDirectory, others: list[RunDirectory]) -> str:
    """The fields that tell a run from the others, with its own values."""
    try:
        differing = differing_fields([run, *(other for other in others if other is not run)])
    except ConfigError:
        return ""
    return "".join(f"  {path}={values[0]}" for path, values in differing.items())


def similar_runs(config: Config, run: RunDirectory) -> Iterator[list[RunDirectory]]:
    """The other runs of the name that `config` has, or would have without one; then those that are called
    otherwise and are of the same model, algo and data. Each list is newest first.
    """
    others: list[RunDirectory] = []
    with suppress(OSError):  # no run yet, or one that was cleaned away this moment
        root = Path(config.root)
        others = [
            other for other in _newest_first(root, (root / "runs").stat().st_mtime_ns) if other.dir != run.dir
        ]
    recipe = recipe_words(config)
    names = {run.name, run_name(config).rpartition("-")[0], recipe}
    yield [other for other in others if other.name in names][:LOOKED_INTO]
    named = [other for other in others if other.name not in names]
    yield [other for other in named[:LOOKED_INTO] if _recipe_of(other) == recipe]


@lru_cache(maxsize=4)
def _newest_first(root: Path, _changed: int) -> list[RunDirectory]:
    return sorted(all_runs(root), key=RunDirectory.used, reverse=True)


def _recipe_of(run: RunDirectory) -> str | None:
    """What a run would be called without a name; None where its config can't be read."""
    with suppress(OSError, ConfigError):
        return _read_recipe(run.dir, (run.dir / "config.yaml").stat().st_mtime_ns)
    return None


@lru_cache(maxsize=4 * LOOKED_INTO)
def _read_recipe(directory: Path, _changed: int) -> str:
    return recipe_words(RunDirectory(directory).config())


def differing_fields(runs: list[RunDirectory]) -> dict[str, list[Any]]:
    """The identity and place fields in which the runs' configs differ: path → a value for each run. Raises
    ConfigError.
    """
    written = [
        {path: value for path, declared, value in leaves(run.config()) if declared.kind != "neutral"}
        for run in runs
    ]
    return {
        path: [fields[path] for fields in written]
        for path in written[0]
        if any(fields[path] != written[0][path] for fields in written)
    }
