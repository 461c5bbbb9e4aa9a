"""Files of a hub → a directory: several at a time, each one checked, and none begun anew that was begun.

What came of a file lies under PARTS in the directory until it is whole and its digest is right; one rename
then gives it its name. So whoever was killed goes on where it was, in the middle of a file too. Standard
library only: the same for every hub.

Not covered: files in several pieces at once, and hubs that want anything but HTTP.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner.errors import DataError
from tuner.files import read_json, write_json
from tuner.hub import http
from tuner.hub.listing import RemoteFile, check_names, digest_of, is_intact
from tuner.progress import progress_bar
from tuner.report.byte_size import readable_bytes

PARTS = ".parts"
"""where files lie that are not whole; it begins with a dot, so nothing in it is ever published"""
WORKERS = 4
"""files that are received at the same time"""
ATTEMPTS = 2
"""times that a file is begun from its first byte, before it is given up as wrong"""
SMALL = 32 << 20
"""bytes of a file that is read whole, to learn which others are wanted"""


class _Ended(Exception):
    """Another file failed, or the person wants to stop."""


def download_repository(
    repo: str,
    commit: str,
    wanted: Mapping[str, RemoteFile],
    key: str,
    out: Path,
    headers: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """`begin_download`, then `fetch_files`: all of it, where no cache is looked into first. Returns {repo,
    commit, files: name → path}.
    """
    begin_download(repo, commit, wanted, key, out, say)
    fetch_files(wanted, out, headers, say)
    return {"repo": repo, "commit": commit, "files": {name: remote.path for name, remote in wanted.items()}}


def begin_download(
    repo: str, commit: str, wanted: Mapping[str, RemoteFile], key: str, out: Path, say: Callable[[str], None]
) -> None:
    """Tell what is going to be brought, and note names and sizes in `out` under `key` until the end, for
    `describe_progress`. Raises DataError for names that are none.
    """
    check_names(wanted)
    write_json(out / PARTS / f"{key}.json", {"sizes": {name: remote.size for name, remote in wanted.items()}})
    count = f"{len(wanted):,} file{'s' if len(wanted) != 1 else ''}"
    size = sum(remote.size or 0 for remote in wanted.values())
    say(f"{repo} at {commit[:12]}: {count}, {readable_bytes(size)}")


def describe_progress(out: Path) -> str | None:
    """How much of it an interrupted download left in `out`, in words; None where there is nothing to go on
    from.
    """
    notes = [note for path in sorted((out / PARTS).glob("*.json")) if (note := read_json(path))]
    sizes = [size or 0 for note in notes for size in note.get("sizes", {}).values()]
    there = sum(
        path.stat().st_size for path in [*out.glob("*"), *(out / PARTS).glob("*.part")] if path.is_file()
    )
    of = f" of {readable_bytes(sum(sizes))}" if any(sizes) else ""  # all is there, or the hub tells no sizes
    return f"{readable_bytes(there)}{of}" if there else None


def fetch_files(
    wanted: Mapping[str, RemoteFile], out: Path, headers: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Have each file of `wanted`, a name in `out` → where it comes from, whole and with its digest. What is
    there already stays.

    `headers` go to the host of a file's address and to no other. Raises HttpRefused, DataError for a server
    that can't be reached or whose files are not what they should be, and OSError for a disk that is full.
    """
    check_names(wanted)
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    stop, counted = threading.Event(), threading.Lock()
    with progress_bar("download", sum(remote.size or 0 for remote in wanted.values()), say) as advance:

        def count(more: int) -> None:
            with counted:
                advance(more)

        with ThreadPoolExecutor(WORKERS) as pool:
            tasks = [
                pool.submit(_download_file, remote, out / name, out / PARTS, headers, stop, count)
                for name, remote in wanted.items()
            ]
            try:
                wait(tasks, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    # who was only told to end knows no reason
    for error in sorted(errors, key=lambda error: isinstance(error, _Ended)):
        raise error


def _download_file(
    remote: RemoteFile,
    target: Path,
    parts: Path,
    headers: Mapping[str, str],
    stop: threading.Event,
    count: Callable[[int], None],
) -> None:
    read = 0

    def tick(more: int) -> None:
        nonlocal read
        read += more
        count(more)

    if target.is_file() and is_intact(target, remote, tick):
        count(target.stat().st_size - read)
        return
    count(-read)
    part = parts / part_name(remote)
    for beginning in range(ATTEMPTS):
        size = _receive_part(remote, part, headers, stop, count)
        if is_intact(part, remote):
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            return
        part.unlink()
        count(-size if beginning + 1 < ATTEMPTS else 0)
    raise _damaged_error(remote, size)


def _damaged_error(remote: RemoteFile, size: int) -> DataError:
    expected = (
        f"{remote.size:,} bytes"
        if remote.size is not None and size != remote.size
        else "the digest that the hub tells"
    )
    return DataError(
        f"{remote.path} was received as {size:,} bytes, twice, and is not what the hub describes: {expected} "
        "was expected. Something on the way changes or cuts it, or the hub's own copy is damaged: try "
        "again later, or another revision."
    )


def read_small_file(remote: RemoteFile, headers: Mapping[str, str]) -> bytes:
    """A small file, checked as the others are. Raises HttpRefused, and DataError for one that is not small
    or not what it should be.
    """
    if (remote.size or 0) > SMALL:
        raise DataError(
            f"{remote.path} is {readable_bytes(remote.size or 0)} long, and no such file has more than "
            f"{readable_bytes(SMALL)}: it is not read."
        )
    size = 0
    for _ in range(ATTEMPTS):
        found = http.get(remote.url, headers, SMALL)
        size = len(found)
        if (remote.size is None or size == remote.size) and digest_of([found], size, remote) == (
            remote.sha256 or remote.blob
        ):
            return found
    raise _damaged_error(remote, size)


def part_name(remote: RemoteFile) -> str:
    """What the beginning of a file is called under PARTS. A digest says which content it is, wherever it
    comes from; without one only the address does.
    """
    digest = remote.sha256 or remote.blob
    known = "|".join(map(str, (remote.path if digest else remote.url, remote.size, digest)))
    return f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.part"


def _receive_part(
    remote: RemoteFile,
    part: Path,
    headers: Mapping[str, str],
    stop: threading.Event,
    count: Callable[[int], None],
) -> int:
    """Bring a part to its end, as far as the server gives it; returns its bytes."""
    have = part.stat().st_size if part.is_file() else 0
    count(have)
    failed = 0
    while True:
        before = have
        try:
            if remote.size is None or have < remote.size or not part.is_file():
                have = _receive_more(remote, part, have, headers, stop, count)
            return have
        except (http.HttpRefused, http.ConnectionBroken) as error:
            have = part.stat().st_size if part.is_file() else 0
            # there is no more: who looks at the digest says whether that is all
            if isinstance(error, http.HttpRefused) and error.status == 416:
                return have
            if isinstance(error, http.HttpRefused) and error.status not in http.TRANSIENT_STATUS:
                raise
            failed = 0 if have > before else failed
            if failed == len(http.PAUSES):
                raise http.unreachable_error(remote.url, str(error)) from error
            pause = max(http.PAUSES[failed], error.after)
            failed += 1
            if stop.wait(pause):
                raise _Ended from None


def _receive_more(
    remote: RemoteFile,
    part: Path,
    have: int,
    headers: Mapping[str, str],
    stop: threading.Event,
    count: Callable[[int], None],
) -> int:
    with http.open_url(remote.url, {**headers, **({"Range": f"bytes={have}-"} if have else {})}) as response:
        if have and response.status != 206:  # the server gives all of it again
            count(-have)
            have = 0
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            while piece := http.read_piece(response):
                if stop.is_set():
                    raise _Ended
                file.write(piece)
                have += len(piece)
                count(len(piece))
                if remote.size is not None and have > remote.size:
                    break
    cut = response.length is None and remote.size is not None and have < remote.size
    if (remote.size is None or have < remote.size) and (cut or response.length):
        raise http.ConnectionBroken(
            f"the connection ended after {have:,}{f' of {remote.size:,}' if remote.size is not None else ''} "
            "bytes"
        )
    return have  # or fewer than expected, where the server has no more: the digest decides


def remove_leftovers(out: Path, wanted: Iterable[str]) -> None:
    """Remove from `out` what an interrupted attempt noted, and files that are not wanted."""
    keep = set(wanted)
    for path in [
        *(out / PARTS).glob("*"),
        *(path for path in out.glob("*") if path.is_file() and path.name not in keep),
    ]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (out / PARTS).rmdir()
