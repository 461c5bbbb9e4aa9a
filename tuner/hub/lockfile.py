"""tuner.lock: the commits that branches of hubs mean, what their files hold, and what the person's own do.
One file for a project, meant to be committed.

    {"version": 1, "pins": {"model hub internlm/internlm2-1_8b@main": {"commit": "…", "files": {"config.json":
    {"size": 712, "sha256": "…"}, …}}}, "files": {"data/support.jsonl": "sha256 …"}}

A reference is looked up once and stays what it was: a branch that moves changes no run until somebody removes
its entry. A file of one's own is in it as the last run found it that was not locked. Entries are sorted, so
that two branches of a project merge by lines.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuner.config.schema import HUBS
from tuner.errors import ConfigError
from tuner.files import decode_json, write_text

VERSION = 1
MODEL_FIELDS = ("layout", "quantised", "template")
"""what an entry may say of a model besides"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """A file of a repository at a commit."""

    size: int | None = None
    """in bytes; None where the hub does not tell"""
    sha256: str | None = None
    """of its content, in hex"""
    blob: str | None = None
    """else the name that git gives its content: sha1 of `blob SIZE\\0` and the content"""
    revision: str | None = None
    """the commit to ask for this file, where that is not the repository's (ModelScope)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """A reference, looked up."""

    commit: str
    files: Mapping[str, Pinned]
    """the wanted ones, by their path in the repository, in the order in which they are read"""
    layout: str | None = None
    """of a model: how its tensors are laid out (tuner.models.layouts.detection)"""
    quantised: str | None = None
    """of a model: how its weights are quantised, where that is undone when they are fetched
    (tuner.models.checkpoint.quantised)
    """
    template: str | None = None
    """of a model: the chat template that model/chat=auto takes for its tokenizer, as far as that was known
    before the download (tuner.data.chat.choice)
    """
    made: Mapping[str, str] = field(default_factory=dict)
    """the content digest of what was made of them, by the artifact's fingerprint; so later stages are
    known before anything is downloaded
    """


def entry_name(
    kind: str, source: str, repo: str, revision: str | None, patterns: tuple[str, ...] = ()
) -> str:
    """What an entry is called.

    >>> entry_name("model", "hub", "org/name", None)
    'model hub org/name@main'
    >>> entry_name("data", "modelscope", "org/name", "v1", ("a/*.jsonl",))
    'data modelscope org/name@v1 a/*.jsonl'
    """
    return " ".join([kind, source, f"{repo}@{revision or HUBS[source]}", *patterns])


def find_pin(lock: Path, name: str) -> Pin | None:
    """The entry called `name`. Raises ConfigError for a file that is no lock."""
    entry = _entries(lock).get(name)
    if entry is None:
        return None
    try:
        return _read(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{lock}: the entry {name!r} can't be read ({error!r}). Remove it, and the next run looks it up "
            "again."
        ) from error


def _read(entry: Any) -> Pin:
    """An entry, held to what `write` writes: the file may come from anybody."""
    files = {path: Pinned(**pinned) for path, pinned in entry["files"].items()}
    for path, pinned in files.items():
        digests = [(pinned.sha256, "[0-9a-f]{64}"), (pinned.blob, "[0-9a-f]{40}"), (pinned.revision, ".+")]
        if any(value is not None and not re.fullmatch(pattern, value) for value, pattern in digests):
            raise ValueError(f"{path} has no digest of a file")
        if pinned.size is not None and (type(pinned.size) is not int or pinned.size < 0):
            raise ValueError(f"{path} has the size {pinned.size!r}")
    commit, said = entry["commit"], dict(entry.get("made", {}))
    more = {name: entry.get(name) for name in MODEL_FIELDS}
    texts = [commit, *said.values(), *(value for value in more.values() if value is not None)]
    if not all(isinstance(value, str) for value in texts):
        raise ValueError(f"commit, {', '.join(MODEL_FIELDS)} and made should be texts")
    return Pin(commit=commit, files=files, made=said, **more)


def lookup_message(lock: str, name: str, pin: Pin) -> str:
    """What a person is told of a reference that was looked up."""
    return f"{name} is the commit {pin.commit[:12]}, as {lock} says from now on"


def refuse_other_files(lock: str, files: Mapping[Path, str]) -> None:
    """Raise ConfigError where a file of the person's own, with its sha256, is not as the lock has it."""
    known = _entries(Path(lock), "files")
    for path, digest in files.items():
        there = known.get(file_key(Path(lock), path))
        if there is None:
            raise ConfigError(missing_message(lock, file_key(Path(lock), path)))
        if there != digest:
            raise ConfigError(
                f"{path} has other content (sha256 {digest[:12]}) than {lock} says ({str(there)[:12]}), and "
                "locked=true takes nothing else. Restore the file; or run the same command once without "
                f"locked=true, which writes what it holds now, and commit {lock}."
            )


def write_files(lock: Path, files: Mapping[Path, str]) -> None:
    """Note what files of the person's own hold: path → sha256."""
    found = {file_key(lock, path): digest for path, digest in files.items()}
    if found.items() <= _entries(lock, "files").items():
        return
    with _exclusive(lock):
        _write(lock, _entries(lock), _entries(lock, "files") | found)


def file_key(lock: Path, path: Path) -> str:
    """What the lock calls a file: by its place from there, where it lies below; so a project may move."""
    here, there = Path(os.path.abspath(lock)).parent, Path(os.path.abspath(path))  # noqa: PTH100  links stay
    return there.relative_to(here).as_posix() if here in there.parents else str(there)


def missing_message(lock: str, name: str) -> str:
    """What a run with locked=true is told that needs what the lock does not have."""
    return (
        f"{lock} has no entry {name!r}, and locked=true takes nothing that is not in it. Run the same "
        f"command once without locked=true, which looks it up and adds it, and commit {lock}."
    )


def pinned_commits(pins: Mapping[str, Pin | None]) -> dict[str, str]:
    """What enters a fingerprint: the commit of each reference, under its name without the branch or tag.

    >>> pinned_commits({"data hub org/name@main a/*.jsonl": Pin(commit="0a1b", files={})})
    {'hub org/name a/*.jsonl': '0a1b'}
    """
    found: dict[str, str] = {}
    for name, pin in pins.items():
        source, reference, *patterns = name.split(" ")[1:]
        plain = " ".join([source, reference.rpartition("@")[0], *patterns])
        if pin is not None:
            # the same at two revisions
            found[plain if plain not in found else f"{plain} {len(found)}"] = pin.commit
    return found


def known_content(pins: Mapping[str, Pin | None], fingerprint: str) -> str | None:
    """The content of the artifact with this fingerprint, as the lock has it."""
    pin = next(iter(pins.values())) if len(pins) == 1 else None
    return pin.made.get(fingerprint[:12]) if pin is not None else None


def add_pin(lock: Path, name: str, pin: Pin) -> Pin:
    """Add an entry, unless somebody else was faster; returns the one that counts."""
    with _exclusive(lock):
        if (other := find_pin(lock, name)) is not None:
            return other
        _write(lock, _entries(lock) | {name: _plain(pin)}, _entries(lock, "files"))
        return pin


def write_pin(lock: Path, name: str, pin: Pin) -> None:
    """Add an entry, or put it in the place of the one there is. The file is written whole, also when
    several processes write at once.
    """
    with _exclusive(lock):
        _write(lock, _entries(lock) | {name: _plain(pin)}, _entries(lock, "files"))


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with (lock.parent / f".{lock.name}.flock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _write(lock: Path, pins: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    content = {"version": VERSION, "pins": dict(sorted(pins.items()))}
    if files:
        content["files"] = dict(sorted(files.items()))
    write_text(lock, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _plain(pin: Pin) -> dict[str, Any]:
    files = {
        path: {name: value for name, value in asdict(pinned).items() if value is not None}
        for path, pinned in pin.files.items()
    }
    more = {name: getattr(pin, name) for name in MODEL_FIELDS} | {"made": dict(pin.made)}
    return {"commit": pin.commit, **{name: value for name, value in more.items() if value}, "files": files}


def _entries(lock: Path, part: str = "pins") -> dict[str, Any]:
    try:
        content = decode_json(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{lock} can't be read as a lock file ({error}). Take it from version control again, or "
            "remove it."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("pins"), dict):
        raise ConfigError(
            f"{lock} is not a lock file of tuner: it should hold `pins`. Name another with lock=FILE."
        )
    if content.get("version") != VERSION:
        raise ConfigError(
            f"{lock} has version {content.get('version')}, and this tuner reads {VERSION}. Update "
            "tuner, or name another lock=FILE."
        )
    entries = content.get(part, {})
    if not isinstance(entries, dict):
        raise ConfigError(
            f"{lock}: `{part}` should hold entries by name. Take it from version control again."
        )
    return entries
