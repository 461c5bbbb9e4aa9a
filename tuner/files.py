"""Small dealings with the disk: JSON that is written whole or not at all, a file's digest and identity,
whose it is.
"""

import errno
import hashlib
import json
import os
import pwd
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

PIECE = 1 << 20
"""bytes of a file that are read at once"""

COMPILED = "compiled"
"""the name of the user's cache of compiled kernels"""


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False))


def disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk or quota."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        found = found.__cause__ or found.__context__
    return False


def decode_json(text: str | bytes, **options: Any) -> Any:
    """As json.loads; raises ValueError also for what is nested more deeply than Python reads."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when there is none that can be read."""
    try:
        value = decode_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def user_cache(name: str) -> Path:
    """Where tuner keeps something of that name for this user, outside of any store: by the XDG base directory
    specification, which takes absolute paths only.
    """
    told = os.environ.get("XDG_CACHE_HOME")
    root = Path(told) if told and Path(told).is_absolute() else Path.home() / ".cache"
    return root / "tuner" / name


def drop_leftovers(directory: Path) -> None:
    """Remove names that start with a dot: what a killed writer had not finished."""
    for path in list(directory.rglob(".*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sha256_of(path: Path, tick: Callable[[int], object] = lambda _: None) -> str:
    """A file's sha256, in hex; `tick` hears of each piece that was read, how many bytes it has."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            tick(len(piece))
    return digest.hexdigest()


def file_identity(path: Path) -> list[int]:
    """Size, times in ns and inode: what changes when a file does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def sync_to_disk(path: Path) -> None:
    """Have a file, or a directory's entries, on the disk before going on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_or_copy(source: Path, target: Path) -> bool:
    """A hard link, or a copy where the file system or another owner allows none. Says whether it is a
    link.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def owner(path: Path) -> str:
    """The name of whom a file belongs to."""
    uid = path.lstat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def foreign_owner(path: Path) -> str | None:
    """Whom a file belongs to, when that is somebody else. Nothing is foreign to root, who may change it
    all.
    """
    try:
        return owner(path) if os.geteuid() not in (0, path.lstat().st_uid) else None
    except FileNotFoundError:
        return None


def group_of(directory: Path) -> int | None:
    """The id of the group that may write into a directory, if we belong to it; None when only its owner
    may, or it is not there.
    """
    try:
        status = directory.stat()
    except OSError:
        return None
    ours = os.geteuid() == 0 or status.st_gid in (os.getegid(), *os.getgroups())
    return status.st_gid if ours and status.st_mode & stat.S_IWGRP else None


def open_to_group(path: Path, group: int) -> None:
    """Let a group read a file of ours, or enter a directory, and nobody but us change it, whatever the
    umask was.
    """
    status = path.lstat()
    if status.st_uid != os.geteuid() or stat.S_ISLNK(status.st_mode):
        return  # a hard link to another user's file is theirs, and open already
    if status.st_gid != group:
        os.chown(path, -1, group)
    before = stat.S_IMODE(path.lstat().st_mode)
    mode = (before | (0o050 if stat.S_ISDIR(status.st_mode) else 0o040)) & ~0o022
    if mode != before:
        path.chmod(mode)


def bytes_under(path: Path) -> int:
    """The size of a file, or of all files in a directory; 0 where there is none."""
    try:
        return sum(
            file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
        )
    except OSError:  # it went away meanwhile
        return 0
