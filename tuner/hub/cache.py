"""What the hubs' own clients left on this machine: files that need no download, and the branches that they
were of. Nothing here asks a network.

    $HF_HUB_CACHE/models--org--name/blobs/<digest>                  contents, by sha256 or by the name that
    git gives them
                                    snapshots/<commit>/<path>       links to them
                                    refs/<revision>                 a commit
    $MODELSCOPE_CACHE/[models/]org/name/<path>                      files, the dots of a name written as ___

A file is taken by a hard link or as a copy, so that nothing in a store ever points out of it, and its digest
is looked at before it counts. Not covered: Hugging Face's cache on a file system without symbolic links,
where snapshots hold the files themselves.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.files import link_or_copy
from tuner.hub.lockfile import Pin, Pinned

if TYPE_CHECKING:
    from tuner.hub.listing import Listing


def huggingface_cache() -> Path:
    """Where Hugging Face's client keeps repositories, by the rules of its own."""
    environment = os.environ
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    said = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(said)).expanduser()


def modelscope_cache() -> Path:
    """Where ModelScope's client keeps them."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub").expanduser()


def find_cached(source: str, repo: str, path: str, pinned: Pinned) -> Path | None:
    """A file of a repository that seems to be here: of the right name and size. Its content is not read.
    Without a digest nothing is.
    """
    digest = pinned.sha256 or pinned.blob
    for candidate in _candidates(source, repo, path, digest) if digest else ():
        if (
            candidate.is_file()
            and not candidate.is_symlink()
            and pinned.size in (None, candidate.stat().st_size)
        ):
            return candidate
    return None


def _candidates(source: str, repo: str, path: str, digest: str) -> Iterator[Path]:
    if source == "hub":
        yield _folder(repo) / "blobs" / digest
        return
    for root in (modelscope_cache(), modelscope_cache() / "hub"):
        for folder in (root / "models", root):
            for name in (repo, repo.replace(".", "___")):
                yield folder / name / path


def _folder(repo: str) -> Path:
    return huggingface_cache() / "--".join(["models", *repo.split("/")])


def take_cached(source: str, repo: str, pin: Pin, out: Path, say: Callable[[str], None]) -> set[str]:
    """Put what is here of the pinned files into `out`; returns their names. Files that `out` has already
    are left to whoever downloads.
    """
    from tuner.hub.download import PARTS
    from tuner.hub.listing import is_intact
    from tuner.report.byte_size import readable_bytes

    taken, size = set[str](), 0
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    for number, (path, pinned) in enumerate(pin.files.items()):
        found = None if (out / path).exists() else find_cached(source, repo, path, pinned)
        if found is None:
            continue
        part = out / PARTS / f"{number}.cached"
        part.unlink(missing_ok=True)
        link_or_copy(found, part)
        if is_intact(part, pinned):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            part.replace(out / path)
            taken.add(path)
            size += (out / path).stat().st_size
        else:
            part.unlink()
            say(f"{found} is damaged, and is not used; {path} is downloaded")
    if taken:
        say(
            f"{len(taken):,} file{'s' if len(taken) > 1 else ''}, {readable_bytes(size)}, "
            f"{'were' if len(taken) > 1 else 'was'} here already"
        )
    return taken


def resolve_cached(repo: str, revision: str | None) -> "Listing | None":
    """What Hugging Face's cache has of a model at a branch, a tag or a commit; None where it does not know
    that. It may be less than the hub has.
    """
    from tuner.hub.listing import Listing, RemoteFile

    folder, name = _folder(repo), revision or "main"
    if ".." in name.split("/") or name.startswith("/"):
        return None
    ref = folder / "refs" / name
    commit = ref.read_text(encoding="utf-8", errors="replace").strip() if ref.is_file() else name
    snapshot, blobs = folder / "snapshots" / commit, (folder / "blobs").resolve()
    if not re.fullmatch("[0-9a-f]{40}", commit) or not snapshot.is_dir():
        return None
    files = []
    for path in sorted(snapshot.rglob("*")):
        blob = path.resolve()
        if (
            path.is_symlink()
            and blob.parent == blobs
            and blob.is_file()
            and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest := blob.name)
        ):
            known = {"sha256" if len(digest) == 64 else "blob": digest}
            files.append(
                RemoteFile(
                    path=path.relative_to(snapshot).as_posix(), url="", size=blob.stat().st_size, **known
                )
            )
    return Listing(repo=repo, commit=commit, files=tuple(files))
