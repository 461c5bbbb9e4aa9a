"""`clean`: give disk back. One run's directory, or all that no run refers to."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tuner.errors import ConfigError
from tuner.freeze import nearest
from tuner.runs import Run, all_runs, store_of
from tuner.schema import Config
from tuner.store import Store

RECENT = 24 * 3600.0
"""seconds: what is younger may belong to a run that is just being made"""


def clean(config: Config, names: list[str], *, dry_run: bool, spare_recent: bool) -> int:
    """List, then remove. With names, those runs' directories; without, what no run under the root refers to."""
    root, store = Path(config.root), store_of(config)
    if names:
        for run in [_named(root, name) for name in names]:
            print(f"run {run.dir.name}")
            if not dry_run:
                shutil.rmtree(run.dir)
        return 0
    freed = 0
    for label, path in _unreferenced(root, store, RECENT if spare_recent else 0.0):
        size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else path.lstat().st_size
        print(f"{label:<40} {size / 1e6:10.1f} MB")
        freed += size
        if not dry_run:
            _remove(store, path)
    print(
        f"{'would free' if dry_run else 'freed'} {freed / 1e6:.1f} MB{'; what is younger than a day was spared (--all takes it too)' if spare_recent else ''}"
    )
    return 0


def _named(root: Path, name: str) -> Run:
    runs = list(all_runs(root))
    found = [run for run in runs if run.dir.name == name or run.dir == Path(name)] or [
        run for run in runs if run.dir.name.startswith(name) or run.dir.name.rsplit("-", 1)[-1].startswith(name)
    ]
    if len(found) != 1:
        there = ", ".join(run.dir.name for run in (found or runs)) or "none"
        raise ConfigError(f"{name!r} names {len(found)} runs under {root}.{nearest(name, [r.dir.name for r in runs])} There are: {there}.")
    return found[0]


def _unreferenced(root: Path, store: Store, age: float) -> Iterator[tuple[str, Path]]:
    linked = {link.readlink().name for run in all_runs(root) for link in run.dir.iterdir() if link.is_symlink()}
    for artifact in store.all():
        if artifact.key not in linked and time.time() - artifact.manifest.get("made", 0.0) >= age:
            yield artifact.key, artifact.path
    for folder in (".trash", ".partial"):
        for path in sorted((store.root / folder).glob("*")):
            if time.time() - path.lstat().st_ctime >= age and (folder == ".trash" or store.holder(path.name.removesuffix(".json")) is None):
                yield f"{folder[1:]}/{path.name}", path


def _remove(store: Store, path: Path) -> None:
    """Out of sight by one rename under the artifact's lock, so that nobody meets half an artifact; then the bytes."""
    if path.parent == store.root:
        with store.lock(path.name, lambda holder: print(f"waiting for {path.name}, held by {holder}")):
            path = store.trash(path.name) or path
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
