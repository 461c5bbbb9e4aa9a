"""Which runs refer to what, and what no run refers to.

    store/.refs/<digest>.json   {"run": its directory, "host": …, "user": …, "keys": […]}

Every run leaves such a note in the store, so that whoever cleans sees everybody's runs and needs no look into
their homes. Where a run can be looked at, its links count and not the note. A run in the store's own root is
noted by its place relative to the store: the root may be moved, copied or mounted elsewhere.
"""

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.errors import StoreError
from tuner.files import foreign_owner, open_to_group, owner, read_json, write_json
from tuner.store.artifacts import Store, key_of

FOLDER = ".refs"
NOTE = {"run": str, "host": str, "user": str, "keys": list}
"""what a note says, at least"""
RECENT = 24 * 3600.0
"""seconds: what is younger may belong to a run that is just being made"""
KEY = re.compile(r"[a-z_]+-[0-9a-f]{12}")
"""what an artifact's directory is called; the store's directory may hold other things of a person's"""


def linked_keys(store: Store, run: Path) -> set[str]:
    """The keys that a run's directory links in the store, published or not. A link to nowhere counts too:
    it may be broken only from here.
    """
    here = os.path.realpath(store.root)
    places = (here, os.path.join(here, ".partial"))  # noqa: PTH118
    found = set()
    for link in [Path(entry.path) for entry in os.scandir(run) if entry.is_symlink()]:
        try:
            key, target = key_of(link.readlink().name), os.path.realpath(link)
        except FileNotFoundError:
            continue  # it got its final name this moment; who makes one holds the lock of what it leads to
        if "-" in key and (os.path.dirname(target) in places or not os.path.lexists(target)):  # noqa: PTH120
            found.add(key)
    return found


def write_note(store: Store, run: Path, *more: str) -> None:
    """Write down what a run's directory links in the store, and the keys of `more`, which it is about to
    link. Whole or not.
    """
    file, group = note_file(store, run), store.group()
    # Looked at again after writing: another process may have linked something in the same run meanwhile.
    while (read_json(file) or {}).get("keys", []) != (keys := sorted({*linked_keys(store, run), *more})):
        write_json(
            file, {"run": _place(store, run), "host": socket.gethostname(), "user": owner(run), "keys": keys}
        )
        if group is not None:
            open_to_group(file, group)


def note_file(store: Store, run: Path) -> Path:
    """Where a run's note is: under its place and inode, since another machine may have another run at the
    same place, and for each user apart.
    """
    name = f"{_place(store, run)}\0{run.stat().st_ino}\0{os.geteuid()}"
    return store.root / FOLDER / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"


def _place(store: Store, run: Path) -> str:
    here, there = os.path.realpath(store.root), os.path.realpath(run)
    beside = Path(there).parent.parent == Path(here).parent
    return os.path.relpath(there, here) if beside else there


def referenced(store: Store, root: Path) -> dict[str, list[Path]]:
    """Key → the directories of the runs that refer to it: those under `root`, those beside the store, and
    those that have left a note.

    Raises StoreError when there is a run that can't be looked into and has left no note, or a note that can't
    be read: then nobody knows what is still needed.
    """
    found: dict[str, list[Path]] = {}
    looked: set[Path] = set()
    closed: set[Path] = set()
    for parent in {Path(os.path.realpath(root)), Path(os.path.realpath(store.root)).parent}:
        # a Path, since an entry that is a link to itself raises where it is asked
        for run in [path for entry in _entries(parent / "runs") if (path := Path(entry.path)).is_dir()]:
            try:
                _add_run(found, run, linked_keys(store, run))
                looked.add(run)
            except PermissionError:
                closed.add(run)
    for file, ref, run in _notes(store):
        if run in looked or (keys := _noted_keys(store, file, ref, run)) is None:
            continue
        _add_run(found, run, keys)
        closed.discard(run)
    if closed:
        run = min(closed)
        raise StoreError(
            f"{run} belongs to {owner(run)} and can't be looked into, and it has left no note in the store, "
            "so nobody knows what it refers to. Any run of theirs in it leaves one; or they let you in "
            "with chmod g+rx, or remove the directory."
        )
    return found


def remove_stale_notes(store: Store) -> None:
    """Remove the notes of runs that are gone, as far as they are ours to remove."""
    for file, ref, run in _notes(store):
        if not foreign_owner(file) and _noted_keys(store, file, ref, run) is None:
            file.unlink(missing_ok=True)


def runs_elsewhere(store: Store) -> list[tuple[str, Path]]:
    """Runs of other hosts that are known by their notes only: host:directory, and the note."""
    host = socket.gethostname()
    return [
        (f"{ref['host']}:{run}", file)
        for file, ref, run in _notes(store)
        if ref["host"] != host
        and not os.access(run, os.X_OK)
        and _noted_keys(store, file, ref, run) is not None
    ]


def _entries(directory: Path) -> list["os.DirEntry[str]"]:
    try:
        return sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _add_run(found: dict[str, list[Path]], run: Path, keys: Any) -> None:
    for key in keys:
        if run not in (runs := found.setdefault(key, [])):
            runs.append(run)


def _notes(store: Store) -> Iterator[tuple[Path, Mapping[str, Any], Path]]:
    """Each note: its file, what it says, and the directory of its run. Raises StoreError for one of ours that
    can't be read; another user's is passed over, which would keep all from cleaning.
    """
    here = os.path.realpath(store.root)
    for file in _note_files(store):
        if (ref := _read_note(file)) is not None:
            yield file, ref, Path(os.path.normpath(Path(here, ref["run"])))
        elif file.exists() and not foreign_owner(file):
            raise StoreError(
                f"{file} can't be read. It says what a run refers to, so nothing is removed without it. If "
                "no run is missing from `status`, remove it: every run writes its own again."
            )


def unreadable_notes(store: Store) -> list[Path]:
    """The notes of other users that are passed over."""
    return [file for file in _note_files(store) if foreign_owner(file) and _read_note(file) is None]


def _note_files(store: Store) -> list[Path]:
    return sorted((store.root / FOLDER).glob("[!.]*.json"))


def _read_note(file: Path) -> Mapping[str, Any] | None:
    ref = read_json(file) or {}
    whole = all(isinstance(ref.get(name), kind) for name, kind in NOTE.items())
    return ref if whole and "\0" not in ref["run"] and all(isinstance(k, str) for k in ref["keys"]) else None


def _noted_keys(store: Store, file: Path, ref: Mapping[str, Any], run: Path) -> Any:
    """The keys that a noted run refers to: by its links, or else by its note; None when the run is gone.

    It is gone when it is not there on the host that wrote the note, or beside the store. A whole root that is
    not there may be one that is not mounted now: only its own user's word counts then.
    """
    try:
        return linked_keys(store, run)
    except (FileNotFoundError, NotADirectoryError):
        beside = run.parent.parent == Path(os.path.realpath(store.root)).parent
        ours = ref["host"] == socket.gethostname() and (run.parent.is_dir() or not foreign_owner(file))
        return None if beside or ours else ref["keys"]
    except OSError:  # a home that only its owner may enter, or that does not answer
        return ref["keys"]


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something in the store that no run refers to."""

    label: str
    key: str | None
    """whose lock guards it; None for what lies in the trash"""
    paths: tuple[Path, ...]
    owner: str | None
    """whom it belongs to, if only they may remove it"""
    age: float
    """seconds since it was made, or last changed"""


def leftovers(store: Store, known: Mapping[str, list[Path]]) -> Iterator[Leftover]:
    """What no run of `known` refers to and nobody is building: artifacts, then partial directories with their
    notes, then the trash.

    A partial directory of a key that a run refers to is what a stopped run goes on from, until the
    artifact is published.
    """
    now, shared = time.time(), store.group() is not None

    def leftover(label: str, key: str | None, *paths: Path) -> Iterator[Leftover]:
        with suppress(FileNotFoundError):  # it was moved this moment
            artifact = store.find(paths[0].name) if paths[0].parent == store.root else None
            made = artifact.manifest.get("made", 0.0) if artifact else paths[0].lstat().st_ctime
            if key is None or store.holder(key) is None:
                yield Leftover(
                    label=label,
                    key=key,
                    paths=paths,
                    owner=foreign_owner(paths[0]) if shared else None,
                    age=now - made,
                )

    for entry in _entries(store.root):
        if (KEY.fullmatch(entry.name) or store.find(entry.name)) and not is_needed(
            store, Path(entry.path), known
        ):
            yield from leftover(entry.name, entry.name, Path(entry.path))
    partial: dict[str, list[Path]] = {}
    for entry in _entries(store.root / ".partial"):
        partial.setdefault(entry.name.removesuffix(".json"), []).append(Path(entry.path))
    for name, paths in partial.items():
        if not is_needed(store, paths[0], known):
            yield from leftover(f"partial/{name}", key_of(name), *paths)
    for entry in _entries(store.root / ".trash"):
        yield from leftover(f"trash/{entry.name}", None, Path(entry.path))


def is_needed(store: Store, path: Path, known: Mapping[str, list[Path]]) -> bool:
    """Whether a run of `known` needs an artifact, or a partial directory."""
    key = key_of(path.name)
    return key in known and (path.parent.name != ".partial" or store.find(key) is None)
