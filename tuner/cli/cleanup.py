"""Giving disk back: one run's directory, or all in the store that no run refers to."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tuner.config.schema import Config
from tuner.errors import ConfigError, StoreError, TunerError
from tuner.files import COMPILED, bytes_under, foreign_owner, owner, user_cache
from tuner.pipeline.advice import command_on
from tuner.pipeline.find_run import find_run
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import plan
from tuner.pipeline.run import RunDirectory, all_runs, store_of
from tuner.stages import STAGES
from tuner.store import references
from tuner.store.artifacts import Store
from tuner.store.references import RECENT, Leftover
from tuner.store.usage import DiskUsage, StoreUsage, file_links

AT_ONCE = 64
"""artifacts that are locked and moved to the trash together: each costs a descriptor, and each lot a look
at all runs
"""


def clean(
    config: Config, words: Sequence[str], *, dry_run: bool, spare_recent: bool, not_started: bool = False
) -> int:
    """List, then remove. With words, the directories of the runs that they mean; of those `not_started`, or
    else what no run refers to.

    Raises ConfigError for a run that is being built, StoreError when it can't be known what is still needed.
    """
    root, store = Path(config.root), store_of(config)
    if words and not_started:
        raise ConfigError("clean --not-started finds the runs itself, and takes no names of runs.")
    if words:
        for run in [find_run(root, word) for word in words]:
            _remove_run(run, root, Store(run.store() or store.root), dry_run)
        return 0
    if not_started:
        _remove_not_started(root, store, dry_run)
        return 0
    if not store.root.is_dir():
        print(f"there is no store at {store.root}: nothing to free")
        return 0
    ledger, freed = StoreUsage(store, root), 0
    chosen = [item for item in ledger.leftovers if not spare_recent or item.age >= RECENT]
    ours, others = (
        [item for item in chosen if not item.owner],
        sorted({item.owner for item in chosen if item.owner}),
    )
    for item, size in _would_free(ours) if dry_run else _remove(store, root, ours):
        print(f"{item.label:<44} {size if isinstance(size, str) else f'{size / 1e6:10.1f} MB'}")
        freed += size if isinstance(size, int) else 0
    if not dry_run:
        references.remove_stale_notes(store)
    print(
        f"{'would free' if dry_run else 'freed'} {freed / 1e6:.1f} "
        f"MB{'; what is younger than a day was spared (--all takes it too)' if spare_recent else ''}"
    )
    for other in others:
        theirs = [item for item in chosen if item.owner == other]
        print(
            f"left {', '.join(item.label for item in theirs)}: {ledger.free(theirs) / 1e6:.1f} MB that "
            f"belong to {other}, who can clean them"
        )
    for note in references.unreadable_notes(store):
        print(f"{note} of {owner(note)} can't be read: what only that run refers to was not spared")
    for place, note in references.runs_elsewhere(store):
        print(f"kept what {place} refers to; if that run is gone for good, remove its note: rm {note}")
    _compiled(remove=not spare_recent and not dry_run)
    return 0


def _compiled(*, remove: bool) -> None:
    """Say how large the user's cache of compiled kernels is, if there is one."""
    cache = user_cache(COMPILED)
    if size := bytes_under(cache):
        if remove:
            shutil.rmtree(cache, ignore_errors=True)
        print(
            f"compiled kernels, which are made again where they are needed: {size / 1e6:.1f} MB in {cache}"
            f"{', removed' if remove else '; --all removes them'}"
        )


def _remove_run(run: RunDirectory, root: Path, store: Store, dry_run: bool) -> None:
    if holder := _builder(run, store):
        raise ConfigError(
            f"{run.dir.name} is being built ({holder}) and can't be removed now. Stop it first "
            f"({command_on(run, 'stop')}), or wait."
        )
    if other := foreign_owner(run.dir):
        raise ConfigError(f"{run.dir.name} belongs to {other}, and only they can remove it.")
    own = ""
    with suppress(StoreError, FileNotFoundError):  # a note that can't be read is said where it matters
        own = (
            f"; {StoreUsage(store, root).own(run.dir) / 1e6:.1f} MB in the store are used by no other run, "
            "and `clean` can free them"
        )
    print(f"run {run.dir.name}: {'would be ' if dry_run else ''}removed{own}")
    if not dry_run:
        note = references.note_file(store, run.dir)
        shutil.rmtree(run.dir)
        note.unlink(missing_ok=True)


def _remove_not_started(root: Path, store: Store, dry_run: bool) -> None:
    """The directories of runs of which nothing was made, and nothing is being made now."""
    found = [(run, Store(run.store() or store.root)) for run in all_runs(root) if not run.begun]
    idle = [(run, place) for run, place in found if not foreign_owner(run.dir) and not _builder(run, place)]
    for run, place in idle:
        _remove_run(run, root, place, dry_run)
    if not idle:
        print(f"every run under {root} was started")


def _builder(run: RunDirectory, store: Store) -> str | None:
    """Who builds something of the run: what it links, or what it waits for."""
    if holder := run.holder(store):
        return holder
    with suppress(TunerError, OSError):  # its files may be gone, and then nothing is being made of them
        return next(
            (step.why for step in plan(load_config(run), STAGES, store, run) if step.state == "wait"), None
        )
    return None


def _would_free(ours: Sequence[Leftover]) -> Iterator[tuple[Leftover, int]]:
    usage = DiskUsage()
    for item in ours:
        yield item, sum(usage.add(file_links(path)) for path in item.paths)


def _remove(store: Store, root: Path, ours: Sequence[Leftover]) -> Iterator[tuple[Leftover, int | str]]:
    """Remove leftovers; yields each with the bytes that came back, or why it is still there.

    Out of sight by one rename under the lock, after another look at what runs refer to, so that nobody meets
    half an artifact and who links one under the same lock keeps it; then the bytes.
    """
    for folder in (".trash", ".locks"):
        (store.root / folder).mkdir(exist_ok=True)
    for start in range(0, len(ours), AT_ONCE):
        lot = ours[start : start + AT_ONCE]
        moved: list[list[Path] | str] = []
        with ExitStack() as stack:
            alone = {
                key: stack.enter_context(store.lock_at_once(key))
                for key in {item.key for item in lot if item.key}
            }
            known = references.referenced(store, root)
            for item in lot:
                if item.key is None:
                    moved.append(list(item.paths))
                elif alone[item.key] and not references.is_needed(store, item.paths[0], known):
                    moved.append(_to_trash(store, item.paths))
                else:
                    moved.append("in use, spared")
        for item, places in zip(lot, moved, strict=True):
            yield item, places if isinstance(places, str) else sum(map(_erase, places))


def _to_trash(store: Store, paths: Sequence[Path]) -> list[Path] | str:
    """Where the paths are now, or why they can't be moved."""
    places = []
    for path in reversed(paths):  # a note before its directory
        try:
            places.append(path.rename(store.root / ".trash" / f"{path.name}-{time.time_ns()}"))
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"belongs to {owner(path)}, left: {error.strerror}"
    return places


def _erase(path: Path) -> int:
    """Remove a path; returns the bytes that come back: not those of a file that has a name elsewhere."""
    freed = DiskUsage().add(file_links(path))
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return freed
