"""The files of a hub's data set: which are wanted, at which commit, and their download.

Which hub it is says a module of `tuner.hub`: huggingface or modelscope.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuner.data.files import splits
from tuner.hub import download, http
from tuner.hub.listing import local_names
from tuner.hub.lockfile import Pin


def hub_of(source: str) -> Any:
    """The hub that a value of data.source means."""
    from tuner.hub import huggingface, modelscope

    return huggingface if source == "hub" else modelscope


def pin_files(hub: Any, repo: str, revision: str | None, patterns: Sequence[str] | None) -> Pin:
    """The files of a data set that are wanted, at the commit that its revision is now.

    revision   a branch, a tag or a commit; None for the hub's default
    patterns   of the files wanted; None for those of the training split

    Raises DataError for what a person can mend.
    """
    listing = hub.resolve(repo, revision)
    try:
        pin: Pin = listing.pin(splits.wanted_files(listing, patterns, hub.headers(), hub.NAME))
    except http.HttpRefused as error:
        raise hub.refusal(repo, error) from error
    return pin


def download_files(
    hub: Any, repo: str, pin: Pin, out: Path, say: Callable[[str], None], *, prefix: str = ""
) -> dict[str, Any]:
    """Download the pinned files of a data set into `out`, under names that begin with `prefix` and keep their
    order.

    Returns {repo, commit, files: name → path in the repository}. Raises DataError for what a person can mend.
    """
    hub.refuse_offline(repo)
    sources = hub.remote_files(repo, pin)
    wanted = {name: sources[path] for name, path in local_names(list(pin.files), prefix).items()}
    try:
        return download.download_repository(
            repo, pin.commit, wanted, f"{prefix}{hub.SOURCE}", out, hub.headers(), say
        )
    except http.HttpRefused as error:
        raise hub.refusal(repo, error, commit=pin.commit) from error
