"""Repositories of the Hugging Face hub: what is in one at a commit, and where its files are.

The hub's own client (`huggingface_hub`) says what there is; `tuner.hub.download` brings it, since the client
throws away what it received of a file when it is killed. Which files are wanted, `tuner.data.files.splits`
and `tuner.models.checkpoint.repository_files` say. HF_ENDPOINT names a mirror: all comes over plain HTTP
from the addresses of `resolve/`, which a mirror has too, and never through Xet, which it has not; so there is
nothing to switch off. A token comes from HF_TOKEN or the hub's login, goes to that host only, and is never
written or shown.
"""

import difflib
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from tuner import __version__
from tuner.errors import DataError
from tuner.hub import http
from tuner.hub.listing import Listing, RemoteFile, remote_file
from tuner.hub.lockfile import Pin

SOURCE, NAME = "hub", "the hub"
"""the value of model.source and data.source, and what it is called in messages"""
Kind = Literal["dataset", "model"]
"""of a repository, in the hub's own word"""
LOGIN = "set HF_TOKEN, or log in with `hf auth login`"
WORDS = {"dataset": "data set", "model": "model"}
FIELDS = {"dataset": "data", "model": "model"}
LOCAL = {
    "dataset": "read files that are here: data=local data.path=FILE",
    "model": "use a model that is here: model=local model.path=DIR",
}


def resolve(repo: str, revision: str | None, *, repo_type: Kind = "dataset") -> Listing:
    """The files of a repository, at the commit that `revision` is now. Raises DataError."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    refuse_offline(repo, repo_type)
    api = HfApi()
    commit = _asked(
        lambda: api.repo_info(repo, revision=revision, repo_type=repo_type, timeout=http.TIMEOUT).sha,
        repo,
        revision,
        repo_type,
    )
    entries = _asked(
        lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)),
        repo,
        revision,
        repo_type,
    )
    files = [
        RemoteFile(
            path=entry.path,
            url=_address(repo, entry.path, commit, repo_type),
            size=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            blob=None if entry.lfs else entry.blob_id,
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    return Listing(repo=repo, commit=commit, files=tuple(files))


def remote_files(repo: str, pin: Pin, repo_type: Kind = "dataset") -> dict[str, RemoteFile]:
    """Where the pinned files are, by their paths in the repository. Asks nobody."""
    return {
        path: remote_file(path, pinned, _address(repo, path, pin.commit, repo_type))
        for path, pinned in pin.files.items()
    }


def _address(repo: str, path: str, commit: str, repo_type: Kind) -> str:
    from huggingface_hub import constants, hf_hub_url

    return hf_hub_url(repo, path, repo_type=repo_type, revision=commit, endpoint=constants.ENDPOINT)


def headers() -> dict[str, str]:
    """Who asks."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    found: dict[str, str] = build_hf_headers(library_name="tuner", library_version=__version__)
    return {name.title(): value for name, value in found.items()}


def offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def refuse_offline(repo: str, repo_type: Kind = "dataset") -> None:
    """Raise DataError where the environment forbids to ask the hub."""
    if offline():
        raise DataError(
            f"{repo} has to be downloaded, and HF_HUB_OFFLINE forbids it. Unset HF_HUB_OFFLINE, or "
            f"{LOCAL[repo_type]}."
        )


def _asked(ask: Callable[[], Any], repo: str, revision: str | None, repo_type: Kind) -> Any:
    """What the hub answers, asked again after a pause where it only fails for a moment. Raises DataError."""
    from huggingface_hub import constants, errors

    cause: Exception
    for pause in (*http.PAUSES[:3], None):
        after = 0.0
        _keep_credentials_home()
        try:
            return ask()
        except errors.GatedRepoError as error:
            raise _denied(repo, repo_type, error.response.status_code, gated=True) from error
        except errors.RepositoryNotFoundError as error:
            raise _denied(repo, repo_type, 404) from error
        except errors.RevisionNotFoundError as error:
            raise _no_revision(repo, revision, repo_type) from error
        except errors.HFValidationError as error:
            raise DataError(
                f"{repo!r} is not the name of a repository on the hub, such as org/name: {error}"
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status == 401:  # the client takes any other 401 for a repository that it may not see
                raise _bad_token(repo) from error
            if status not in http.TRANSIENT_STATUS:
                raise _denied(repo, repo_type, status) from error
            why, cause, after = (
                f"it answers with the status {status}",
                error,
                http.retry_after(error.response.headers.get("Retry-After")),
            )
        except network_errors() as error:
            why, cause = str(error) or type(error).__name__, error
        if pause is None:
            raise http.unreachable_error(constants.ENDPOINT, why) from cause
        time.sleep(max(pause, after))
    raise AssertionError


def _keep_credentials_home() -> None:
    """Let the hub's client tell no other server who asks: pages of a listing are where the page before says
    that they are.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session = get_session()
    hooks = session.event_hooks
    if _drop_credentials not in hooks["request"]:
        session.event_hooks = hooks | {"request": [*hooks["request"], _drop_credentials]}


def _drop_credentials(request: Any) -> None:
    from huggingface_hub import constants

    here, there = urlsplit(constants.ENDPOINT), urlsplit(str(request.url))
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        for name in http.CREDENTIAL_HEADERS:
            request.headers.pop(name, None)


def network_errors() -> type[Exception]:
    """What the hub's client raises when the network fails: the error of httpx, or of its successor,
    whichever the client is built on.
    """
    import importlib

    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    base = next(
        cls.__module__.partition(".")[0]
        for cls in type(get_session()).__mro__
        if cls.__module__.startswith("httpx")
    )
    found: type[Exception] = importlib.import_module(base).HTTPError
    return found


def refusal(
    repo: str, error: http.HttpRefused, *, repo_type: Kind = "dataset", commit: str | None = None
) -> DataError:
    """What a person should know of an answer to a request for a file. `commit`: the one that the lock has,
    where it was asked for that.
    """
    if error.status == 404 and error.code in ("", "EntryNotFound", "RevisionNotFound") and commit:
        return DataError(
            f"The lock's entry for {repo} is at the commit {commit[:12]}, and the hub no longer has it: the "
            f"repository's history was rewritten. Remove the entry of {repo} from the lock file "
            "(tuner.lock), and the next run takes what the hub has now."
        )
    if error.status == 401 and error.code not in ("RepoNotFound", "GatedRepo"):
        return _bad_token(repo)
    return _denied(repo, repo_type, error.status, gated=error.code == "GatedRepo")


def _bad_token(repo: str) -> DataError:
    return DataError(f"The hub refuses the token that was sent for {repo}. Renew it: {LOGIN}; or unset it.")


def _denied(repo: str, repo_type: Kind, status: int, *, gated: bool = False) -> DataError:
    from huggingface_hub import constants

    server = http.without_credentials(constants.ENDPOINT)
    page = f"{server}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    if gated:
        return DataError(
            f"{repo} is gated: only those who have accepted its terms can download it. Accept them at "
            f"{page}, then {LOGIN}."
        )
    if status in (401, 404):
        return DataError(
            f"The hub knows no {WORDS[repo_type]} {repo}, or hides it from this account. Check its "
            f"name ({page}); if it is private or gated, {LOGIN}."
        )
    return DataError(f"The hub refuses {repo} with the status {status}. Look at {page}.")


def _no_revision(repo: str, revision: str | None, repo_type: Kind) -> DataError:
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repo, repo_type=repo_type)
        known = [ref.name for ref in [*refs.branches, *refs.tags]] + [ref.ref for ref in refs.converts]
    except Exception:
        known = []  # the error is about the revision; what else there is was only asked to help
    near = difflib.get_close_matches(revision or "", known, n=3, cutoff=0.4) or known[:8]
    there = f"; there is {', '.join(near)}" if near else ""
    return DataError(
        f"{repo} has no revision {revision!r}{there}. Give {FIELDS[repo_type]}.revision a branch, a tag or a "
        "commit."
    )
