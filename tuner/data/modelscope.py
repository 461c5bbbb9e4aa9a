"""Data sets of ModelScope, by the addresses that its own client asks:

    {endpoint}/api/v1/datasets/{owner}/{name}                                       Data.Id
    {endpoint}/api/v1/datasets/{id}/repo/tree?Revision=&Root=/&Recursive=True&…     Data.Files: Path, Size, Sha256, Revision, Type, …
    {endpoint}/api/v1/datasets/{owner}/{name}/repo?Revision=&FilePath=…             the file

MODELSCOPE_ENDPOINT names another server, MODELSCOPE_API_TOKEN a token, which goes there as a cookie and nowhere else.

What was checked: addresses, parameters, fields and the cookie against the source of ModelScope's client; all else (the answers, errors,
resuming) only against a server of the tests, never against modelscope.cn itself.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tuner.data import download, splits, web
from tuner.data.download import Listing, Remote
from tuner.errors import DataError

ENDPOINT = "https://www.modelscope.cn"
REVISION = "master"
PAGE = 100
"""entries of a page of the listing"""


def fetch(
    repo: str, revision: str | None, patterns: Sequence[str] | None, out: Path, say: Callable[[str], None], *, prefix: str = ""
) -> dict[str, Any]:
    """As tuner.data.hub.fetch."""

    def look() -> tuple[Listing, Mapping[str, Remote]]:
        listing = resolve(repo, revision)
        return listing, splits.wanted(listing, patterns, headers(), "ModelScope", prefix)

    try:
        return download.fetch(look, f"{prefix}modelscope", endpoint(), out, headers(), say)
    except web.Refused as error:
        raise _denied(repo, error.status) from error


def resolve(repo: str, revision: str | None) -> Listing:
    """The files of a data set. The commit is the newest of those that its files were last changed by. Raises DataError."""
    try:
        base = f"{endpoint()}/api/v1/datasets"
        entries = _entries(f"{base}/{_ask(f'{base}/{quote(repo)}')['Id']}/repo/tree", repo, revision or REVISION)
    except web.Refused as error:
        raise _denied(repo, error.status) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{endpoint()} answered for {repo} with something else than ModelScope's list of files ({error!r}).") from error
    newest = max(entries, key=lambda entry: entry.get("CommittedDate") or 0, default={})
    commit = str(newest.get("Revision") or revision or REVISION)
    return Listing(repo=repo, commit=commit, files=tuple(_remote(repo, entry, revision or REVISION) for entry in entries))


def _entries(url: str, repo: str, revision: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page = 0
    while True:
        page += 1
        query = {"Revision": revision, "Root": "/", "Recursive": "True", "PageNumber": page, "PageSize": PAGE}
        data = _ask(f"{url}?{urlencode(query)}")
        if data is None:
            raise DataError(
                f"{repo} has no revision {revision!r} on ModelScope. Give data.revision a branch, a tag or a commit; `{REVISION}` is the default."
            )
        entries = data["Files"] or []
        known = {entry["Path"] for entry in found}
        fresh = [entry for entry in entries if entry["Path"] not in known]
        found += fresh
        if len(entries) < PAGE or not fresh:
            return [entry for entry in found if entry.get("Type") != "tree"]


def _remote(repo: str, entry: Mapping[str, Any], revision: str) -> Remote:
    query = urlencode({"Source": "SDK", "Revision": entry.get("Revision") or revision, "FilePath": entry["Path"], "View": "False"})
    return Remote(
        path=entry["Path"],
        url=f"{endpoint()}/api/v1/datasets/{quote(repo)}/repo?{query}",
        size=int(entry["Size"]) if entry.get("Size") is not None else None,
        sha256=entry.get("Sha256") or None,
    )


def _ask(url: str) -> Any:
    """The data of an answer. Raises Refused, and ValueError for what is no answer of ModelScope's."""
    answer = json.loads(web.get(url, headers(), most=256 << 20))
    status = int(answer.get("Code") or 200)
    if status != 200:
        raise web.Refused(status if status in (401, 403, 404) else 404 if "exist" in str(answer.get("Message")) else status, url)
    return answer.get("Data")


def endpoint() -> str:
    """The server, without a slash at its end."""
    return (os.environ.get("MODELSCOPE_ENDPOINT") or ENDPOINT).rstrip("/")


def headers() -> dict[str, str]:
    """Who asks."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    return {"User-Agent": "tuner", **({"Cookie": f"m_session_id={token}"} if token else {})}


def _denied(repo: str, status: int) -> DataError:
    page = f"{endpoint()}/datasets/{repo}"
    if status in (401, 403, 404):
        return DataError(
            f"ModelScope knows no data set {repo}, or keeps it from us (status {status}). Look at its name ({page}); if it is private, set MODELSCOPE_API_TOKEN."
        )
    return DataError(f"ModelScope refuses {repo} with the status {status}. Look at {page}.")
