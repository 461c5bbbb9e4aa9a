"""Data sets and models of ModelScope, by the addresses that its own client asks:

    {endpoint}/api/v1/datasets/{owner}/{name}                                       Data.Id
    {endpoint}/api/v1/datasets/{id}/repo/tree?Revision=&Root=/&Recursive=True&…     Data.Files: Path, Size,
    Sha256, Revision, Type, …
    {endpoint}/api/v1/datasets/{owner}/{name}/repo?Revision=&FilePath=…             the file
    {endpoint}/api/v1/models/{owner}/{name}/repo/files?Revision=&Recursive=True     the same Data.Files, all
    at once
    {endpoint}/api/v1/models/{owner}/{name}/repo?Revision=&FilePath=                the file

MODELSCOPE_ENDPOINT names another server, MODELSCOPE_API_TOKEN a token, which goes there as a cookie and
nowhere else.

What was checked: addresses, parameters, fields and the cookie against the source of ModelScope's client; all
else (the answers, errors, resuming) only against a server of the tests, never against modelscope.cn itself.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from tuner.errors import DataError
from tuner.files import decode_json
from tuner.hub import http
from tuner.hub.huggingface import FIELDS, WORDS, Kind
from tuner.hub.listing import Listing, RemoteFile, remote_file
from tuner.hub.lockfile import Pin

SOURCE, NAME = "modelscope", "ModelScope"
"""as of tuner.hub.huggingface"""
ENDPOINT = "https://www.modelscope.cn"
REVISION = "master"
PAGE = 100
"""entries of a page of the listing"""


def resolve(repo: str, revision: str | None, *, repo_type: Kind = "dataset") -> Listing:
    """The files of a repository. The commit is the newest of those that its files were last changed by.
    Raises DataError.
    """
    try:
        entries = (_data_set if repo_type == "dataset" else _model)(repo, revision or REVISION)
        newest = max(entries, key=lambda entry: entry.get("CommittedDate") or 0, default={})
        commit = str(newest.get("Revision") or revision or REVISION)
        return Listing(
            repo=repo,
            commit=commit,
            files=tuple(_remote(repo, entry, revision or REVISION, repo_type) for entry in entries),
        )
    except http.HttpRefused as error:
        raise refusal(repo, error, repo_type=repo_type) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{http.without_credentials(endpoint())} answered for {repo} with something else than "
            f"ModelScope's list of files ({error!r})."
        ) from error


def _data_set(repo: str, revision: str) -> list[dict[str, Any]]:
    base = f"{endpoint()}/api/v1/datasets"
    url = f"{base}/{_ask(f'{base}/{quote(repo)}')['Id']}/repo/tree"
    found: list[dict[str, Any]] = []
    page = 0
    while True:
        page += 1
        query = {"Revision": revision, "Root": "/", "Recursive": "True", "PageNumber": page, "PageSize": PAGE}
        entries = _files(f"{url}?{urlencode(query)}", repo, revision, "dataset")
        known = {entry["Path"] for entry in found}
        fresh = [entry for entry in entries if entry["Path"] not in known]
        found += fresh
        if len(entries) < PAGE or not fresh:
            return [entry for entry in found if entry.get("Type") != "tree"]


def _model(repo: str, revision: str) -> list[dict[str, Any]]:
    query = urlencode({"Revision": revision, "Recursive": "True"})
    entries = _files(f"{endpoint()}/api/v1/models/{quote(repo)}/repo/files?{query}", repo, revision, "model")
    return [entry for entry in entries if entry.get("Type") != "tree"]


def _files(url: str, repo: str, revision: str, repo_type: Kind) -> list[dict[str, Any]]:
    data = _ask(url)
    if data is None:
        raise DataError(
            f"{repo} has no revision {revision!r} on ModelScope. "
            f"Give {FIELDS[repo_type]}.revision a branch, a tag or a commit; `{REVISION}` is the default."
        )
    files: list[dict[str, Any]] = data["Files"] or []
    return files


def _remote(repo: str, entry: Mapping[str, Any], revision: str, repo_type: Kind) -> RemoteFile:
    path, at, digest = (
        str(entry["Path"]),
        str(entry.get("Revision") or revision),
        str(entry.get("Sha256") or "").lower(),
    )
    size = int(entry["Size"]) if entry.get("Size") is not None else None
    known = digest if re.fullmatch("[0-9a-f]{64}", digest) else None
    return RemoteFile(
        path=path, url=_address(repo, path, at, repo_type), size=size, sha256=known, revision=at
    )


def remote_files(repo: str, pin: Pin, repo_type: Kind = "dataset") -> dict[str, RemoteFile]:
    """As tuner.hub.huggingface.remote_files."""
    found = pin.files.items()
    return {
        path: remote_file(path, pinned, _address(repo, path, pinned.revision or pin.commit, repo_type))
        for path, pinned in found
    }


def _address(repo: str, path: str, revision: str, repo_type: Kind) -> str:
    more = {"Source": "SDK", "View": "False"} if repo_type == "dataset" else {}
    query = urlencode({"Revision": revision, "FilePath": path, **more})
    return f"{endpoint()}/api/v1/{repo_type}s/{quote(repo)}/repo?{query}"


def refuse_offline(_repo: str, _repo_type: Kind = "dataset") -> None:
    """Nothing in the environment forbids to ask ModelScope."""


def _ask(url: str) -> Any:
    """The data of an answer. Raises HttpRefused, and ValueError for what is no answer of ModelScope's."""
    answer = decode_json(http.get(url, headers(), most=256 << 20))
    status = int(answer.get("Code") or 200)
    if status != 200:
        raise http.HttpRefused(
            status if status in (401, 403, 404) else 404 if "exist" in str(answer.get("Message")) else status,
            url,
        )
    return answer.get("Data")


def endpoint() -> str:
    """The server, without a slash at its end."""
    return (os.environ.get("MODELSCOPE_ENDPOINT") or ENDPOINT).rstrip("/")


def headers() -> dict[str, str]:
    """Who asks."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    return {"User-Agent": "tuner", **({"Cookie": f"m_session_id={token}"} if token else {})}


def refusal(
    repo: str, error: http.HttpRefused, *, repo_type: Kind = "dataset", commit: str | None = None
) -> DataError:
    """As tuner.hub.huggingface.refusal. ModelScope does not tell a repository that is gone from a commit
    that is.
    """
    page = f"{http.without_credentials(endpoint())}/{repo_type}s/{repo}"
    if error.status not in (401, 403, 404):
        return DataError(f"ModelScope refuses {repo} with the status {error.status}. Look at {page}.")
    if commit and error.status == 404:
        return DataError(
            f"The lock's entry for {repo} is at the commit {commit[:12]}, and ModelScope no longer has "
            f"it: its history was rewritten, or it was taken away ({page}). Remove the entry of {repo} from "
            "the lock file (tuner.lock), and the next run takes what is there now."
        )
    return DataError(
        f"ModelScope knows no {WORDS[repo_type]} {repo}, or hides it from this account (status "
        f"{error.status}). Check its name ({page}); if it is private, set MODELSCOPE_API_TOKEN."
    )
