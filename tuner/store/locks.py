"""Locks: a flock on one file for each artifact. Who builds it holds it alone; who reads it holds it together
with others.

The kernel releases a lock when the last process that has the file open ends. The file says who holds it
alone, and is never unlinked, since a lock on an unlinked file guards nothing.
"""

import fcntl
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tuner.errors import StoreError
from tuner.files import owner

LOCAL_OPTIONS = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "lustre": {"localflock"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
    "afs": {"flock=local"},
    "9p": {"trans=virtio", "trans=tcp", "trans=rdma"},
}
"""File systems that several machines may have mounted → the mount options with which a flock holds on one
machine only.
"""

REMOUNT = {
    "nfs": "without nolock, and with local_lock=none (the server needs its lock service)",
    "nfs4": "with local_lock=none",
    "lustre": "with the option flock",
    "cifs": "without nobrl",
    "smb3": "without nobrl",
    "afs": "with flock=openafs",
}

ALWAYS_LOCAL = {
    "fuse.sshfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.goofys",
    "fuse.blobfuse",
    "fuse.blobfuse2",
    "fuse.mount-s3",
}
"""Those that leave every flock to the kernel of the machine, whatever the options are."""


def open_lock(path: Path, *, group: bool) -> int:
    """The descriptor of a lock file, which is made when it is not there; in a `group`'s store all of the
    group may lock it.

    Never O_CREAT on a file that is there: in a sticky directory the kernel refuses that for another user's
    file (fs.protected_regular). Raises StoreError when the file can't be opened.
    """
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except FileNotFoundError:
            pass
        except PermissionError:
            try:
                return os.open(path, os.O_RDONLY)  # enough for a lock, except over a network
            except PermissionError as error:
                raise StoreError(
                    f"{path} can't be opened: it belongs to {owner(path)}, who keeps it from others, so "
                    "nobody can tell whether that artifact is being built. They can fix it with: chmod 660 "
                    f"{path}"
                ) from error
        with suppress(FileExistsError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o660 if group else 0o666)
            if group:
                os.fchmod(fd, 0o660)  # whatever the umask is
            return fd


def _who(fd: int) -> str:
    """What a lock file says of its holder."""
    return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"A lock can't be taken in the store ({error.strerror}): over a network that needs write "
            "permission to the file. Ask its owner for chmod g+w on the store's .locks directory and the "
            "files in it, or use a store of your own with store=DIR."
        ) from error
    return True


def holder(path: Path) -> str | None:
    """Who holds a lock alone now, as host:pid, or None. Who only reads is not named."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _try(fd, fcntl.LOCK_SH) else _who(fd)
    except StoreError:
        return None
    finally:
        os.close(fd)


@contextmanager
def exclusive(path: Path, waiting: Callable[[str], None], *, group: bool) -> Iterator[int]:
    """Hold a lock alone; yields its descriptor, so that a child can keep holding it when its parent dies.

    `waiting` is told once who is in the way.
    """
    with exclusive_unless(path, waiting, lambda: False, group=group) as fd:
        assert fd is not None
        yield fd


@contextmanager
def exclusive_unless(
    path: Path, waiting: Callable[[str], None], needless: Callable[[], bool], *, group: bool
) -> Iterator[int | None]:
    """The same, but for None when the lock is `needless` while another holds it: who waits for what another
    builds must not wait for those that read it already.
    """
    fd = open_lock(path, group=group)
    try:
        told = False
        while not _try(fd, fcntl.LOCK_EX):
            if needless():
                yield None
                return
            if not told:
                readers = _try(fd, fcntl.LOCK_SH)
                waiting("runs that read it" if readers else _who(fd))
                fcntl.flock(fd, fcntl.LOCK_UN)  # two that wait must not hold each other up
                told = True
            time.sleep(0.1)
        # a lock that could only be opened for reading holds, but its text can't be written
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{socket.gethostname()}:{os.getpid()}".encode(), 0)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def try_exclusive(path: Path, *, group: bool) -> Iterator[bool]:
    """Hold a lock alone if nobody else has it; yields whether that is so."""
    fd = open_lock(path, group=group)
    try:
        yield _try(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


@contextmanager
def shared(paths: Sequence[Path], *, group: bool) -> Iterator[list[int]]:
    """Hold locks together with other readers, after whoever holds one alone; yields the descriptors."""
    with ExitStack() as stack:
        fds = []
        for path in paths:
            fds.append(fd := open_lock(path, group=group))
            stack.callback(os.close, fd)
            while not _try(fd, fcntl.LOCK_SH):
                time.sleep(0.05)
        yield fds


def check_locks(directory: Path) -> None:
    """Raise StoreError when locks under `directory` fail, or do nothing."""
    first, name = tempfile.mkstemp(prefix=".probe-", dir=directory)
    second = os.open(name, os.O_RDWR)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise StoreError(
            f"Locks do nothing on the file system of {directory.parent}: two processes could build the same "
            "artifact over each other. Put the store on a local disk with store=DIR."
        )
    except OSError as error:
        raise StoreError(
            f"The file system of {directory.parent} has no locks ({error.strerror}); on NFS they need the "
            "lock service. Put the store on a local disk with store=DIR."
        ) from error
    finally:
        os.close(first)
        os.close(second)
        Path(name).unlink(missing_ok=True)


def lock_trouble(mountinfo: str, path: Path) -> str | None:
    """Why locks at `path` hold on this machine only, by the text of /proc/self/mountinfo; None when they hold
    everywhere, as far as can be told.

    `check` sees locks that fail or do nothing. It can't see those of which another machine knows nothing; the
    mount options tell. On Lustre without any of its lock options a flock fails, which `check` sees. A 9p file
    system that a machine got from the host it runs in is used by that machine alone (trans=fd, aname=drvfs).
    Fields: proc_pid_mountinfo(5); options: nfs(5), mount.lustre(8), mount.cifs(8).
    """
    found: tuple[Path, str, set[str]] | None = None
    for line in mountinfo.splitlines():
        front, _, back = line.partition(" - ")
        if len(fields := front.split()) < 6 or len(behind := back.split(None, 2)) < 1:
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # what was mounted later lies on top
        if path.is_relative_to(mount) and (found is None or len(mount.parts) >= len(found[0].parts)):
            found = (
                mount,
                behind[0],
                {*fields[5].split(","), *(behind[2].split(",") if len(behind) > 2 else ())},
            )
    if found is None:
        return None
    mount, kind, options = found
    if any(option.startswith("aname=drvfs") for option in options):
        return None
    reasons = sorted(options & LOCAL_OPTIONS.get(kind, set()))
    if not reasons and kind not in ALWAYS_LOCAL:
        return None
    how = f"is mounted with {reasons[0]}" if reasons else f"is {kind.removeprefix('fuse.')}"
    mend = f" Have it mounted {REMOUNT[kind]}, or put" if kind in REMOUNT else " Put"
    return (
        f"{mount} ({kind}) {how}, so locks there hold on this machine only: two machines could build the "
        f"same artifact over each other.{mend} the store on a local disk with store=DIR."
    )
