"""Repositories of the Hugging Face hub: what is in one at a commit, and the files of a data set in a directory.

The hub's own client (`huggingface_hub`) says what there is; `tuner.data.download` brings it, since the client throws away what it received
of a file when it is killed. Which files are wanted, `tuner.data.splits` says. HF_ENDPOINT names a mirror. A token comes from HF_TOKEN or
the hub's login, goes to that host only, and is never written or shown.
"""

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner import __version__
from tuner.data import download, splits, web
from tuner.data.download import Listing, Remote
from tuner.errors import DataError

LOGIN = "set HF_TOKEN, or log in with `hf auth login`"


def fetch(
    repo: str, revision: str | None, patterns: Sequence[str] | None, out: Path, say: Callable[[str], None], *, prefix: str = ""
) -> dict[str, Any]:
    """Download the files of a data set into `out`; returns {repo, commit, files: name → path in the repository}.

    revision   a branch, a tag or a commit; None for the hub's default
    patterns   of the files wanted; None for those of the training split
    prefix     of the names in `out`
    Raises DataError for what a person can mend.
    """
    from huggingface_hub import constants

    refuse_offline(repo)

    def look() -> tuple[Listing, Mapping[str, Remote]]:
        listing = resolve(repo, revision)
        return listing, splits.wanted(listing, patterns, headers(), "the hub", prefix)

    try:
        return download.fetch(look, f"{prefix}hub", constants.ENDPOINT, out, headers(), say)
    except web.Refused as error:
        raise _denied(repo, "dataset", error.status, gated=error.code == "GatedRepo") from error


def resolve(repo: str, revision: str | None, *, repo_type: str = "dataset") -> Listing:
    """The files of a repository, at the commit that `revision` is now. `repo_type` is dataset or model. Raises DataError."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    refuse_offline(repo)
    api = HfApi()
    commit = _asked(lambda: api.repo_info(repo, revision=revision, repo_type=repo_type, timeout=web.TIMEOUT).sha, repo, revision, repo_type)
    entries = _asked(lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)), repo, revision, repo_type)
    files = [
        Remote(
            path=entry.path,
            url=hf_hub_url(repo, entry.path, repo_type=repo_type, revision=commit, endpoint=api.endpoint),
            size=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            blob=None if entry.lfs else entry.blob_id,
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    return Listing(repo=repo, commit=commit, files=tuple(files))


def headers() -> dict[str, str]:
    """Who asks."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    found: dict[str, str] = build_hf_headers(library_name="tuner", library_version=__version__)
    return {name.title(): value for name, value in found.items()}


def refuse_offline(repo: str) -> None:
    """Raise DataError where the environment forbids to ask the hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DataError(
            f"{repo} has to be downloaded, and HF_HUB_OFFLINE forbids it. Unset HF_HUB_OFFLINE, or read files that are here: data=local data.path=FILE."
        )


def _asked(ask: Callable[[], Any], repo: str, revision: str | None, repo_type: str) -> Any:
    """What the hub answers, asked again after a pause where it only fails for a moment. Raises DataError."""
    from huggingface_hub import constants, errors

    cause: Exception
    for pause in (*web.PAUSES[:3], None):
        try:
            return ask()
        except errors.GatedRepoError as error:
            raise _denied(repo, repo_type, error.response.status_code, gated=True) from error
        except errors.RepositoryNotFoundError as error:
            raise _denied(repo, repo_type, 404) from error
        except errors.RevisionNotFoundError as error:
            raise _no_revision(repo, revision, repo_type) from error
        except errors.HFValidationError as error:
            raise DataError(f"{repo!r} is no name of a repository on the hub, such as org/name: {error}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status == 401:  # the client takes any other 401 for a repository that it may not see
                raise DataError(f"The hub refuses the token it was given, before anything of {repo}. Renew it: {LOGIN}; or unset it.") from error
            if status not in web.PASSING:
                raise _denied(repo, repo_type, status) from error
            why, cause = f"it answers with the status {status}", error
        except _network() as error:
            why, cause = str(error) or type(error).__name__, error
        if pause is None:
            raise web.unreachable(constants.ENDPOINT, why) from cause
        time.sleep(pause)
    raise AssertionError


def _network() -> type[Exception]:
    """What the hub's client raises when the network fails: the error of httpx, or of its successor, whichever the client is built on."""
    import importlib

    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    base = next(cls.__module__.partition(".")[0] for cls in type(get_session()).__mro__ if cls.__module__.startswith("httpx"))
    found: type[Exception] = importlib.import_module(base).HTTPError
    return found


def _denied(repo: str, repo_type: str, status: int, *, gated: bool = False) -> DataError:
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    kind = "data set" if repo_type == "dataset" else "model"
    if gated:
        return DataError(f"{repo} is gated: the hub gives it only to those who accepted its terms. Accept them at {page}, then {LOGIN}.")
    if status in (401, 404):
        return DataError(f"The hub knows no {kind} {repo}, or keeps it from us. Look at its name ({page}); if it is private or gated, {LOGIN}.")
    return DataError(f"The hub refuses {repo} with the status {status}. Look at {page}.")


def _no_revision(repo: str, revision: str | None, repo_type: str) -> DataError:
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repo, repo_type=repo_type)
        known = [ref.name for ref in [*refs.branches, *refs.tags]] + [ref.ref for ref in refs.converts]
    except Exception:
        known = []  # the error is about the revision; what else there is was only asked to help
    near = difflib.get_close_matches(revision or "", known, n=3, cutoff=0.4) or known[:8]
    there = f"; there is {', '.join(near)}" if near else ""
    return DataError(f"{repo} has no revision {revision!r}{there}. Give data.revision a branch, a tag or a commit.")
