"""A hub on this machine: a server in a thread that answers as Hugging Face's and ModelScope's do, and fails
when it is told to.

    with Hub() as hub:
        hub.add("org/name", {"train.jsonl": b"…"})
        hub.fail("train.jsonl", 503, Cut(1000))          the first answer, the second; then all goes well
        subprocess.run([…], env={**os.environ, **hub.env})
        assert hub.sent["train.jsonl"] == …

Files of the ending .parquet, or larger than `large`, lie elsewhere, as they do at the hub: an answer sends
the client to a host of another name, which must see no token.
"""

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.uploads import Uploads


@dataclass(frozen=True)
class Cut:
    """The connection breaks after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Hold:
    """The body stops after so many bytes, until `hub.go`; then the connection breaks."""

    after: int


@dataclass(frozen=True)
class Instead:
    """Another body, with its own length."""

    body: bytes


@dataclass(frozen=True)
class Busy:
    """A refusal that says when to come again, in seconds."""

    after: int
    status: int = 429


Fault = int | Busy | Cut | Hold | Instead


@dataclass
class Repo:
    """A repository: its files at each commit, and what its branches and tags are."""

    name: str
    kind: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """without it the repository is as good as none"""
    gated: bool = False
    private: bool = False

    def commit(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server. `sent` counts the bytes of each file's body, by its path in the repository; `asked`
    holds (method, path, headers).
    """

    def __init__(self, *, large: int = 1000, page: int = 1000) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large, self.page = large, page
        self.pages_at = ""
        """the server that the next pages of a listing are said to be at; empty: this one"""
        self.counted: Counter[str] = Counter()
        self.stored: dict[str, bytes] = {}
        """what was uploaded, by its sha256"""
        self.busy, self.counting = 0, threading.Lock()
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []
        self.expired: set[str] = set()
        """tokens that are refused, whatever they ask for"""
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.held, self.go = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def sent(self) -> Counter[str]:
        """Bytes of each file's body, once the answers under way are counted: a client may have read one
        before its server goes on.
        """
        until = time.monotonic() + 1
        while self.busy and time.monotonic() < until:
            time.sleep(0.005)
        return self.counted

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another name."""
        return f"http://localhost:{self._server.server_port}"

    @property
    def env(self) -> dict[str, str]:
        """What leads a process here, and to no login of the person's."""
        return {
            "HF_ENDPOINT": self.url,
            "MODELSCOPE_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": "/nonexistent/token",
            "MODELSCOPE_API_TOKEN": "",
            "HF_HUB_CACHE": "/nonexistent/hub",
            "MODELSCOPE_CACHE": "/nonexistent/modelscope",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def add(
        self,
        name: str,
        files: Mapping[str, bytes | str],
        *,
        kind: str = "datasets",
        refs: Iterable[str] = ("main", "master"),
        token: str | None = None,
        gated: bool = False,
    ) -> str:
        """A commit of a repository, at which `refs` are from now on; returns its name. `kind` is datasets
        or models.
        """
        contents = {
            path: content.encode() if isinstance(content, str) else content for path, content in files.items()
        }
        repo = self.repos.setdefault((kind, name), Repo(name=name, kind=kind))
        repo.token, repo.gated = token, gated
        said = repr(
            (
                name,
                len(repo.commits),
                sorted((path, hashlib.sha1(content).hexdigest()) for path, content in contents.items()),
            )
        )
        commit = hashlib.sha1(said.encode()).hexdigest()
        repo.commits[commit] = contents
        repo.refs |= dict.fromkeys(refs, commit)
        return commit

    def fail(self, path: str, *faults: Fault) -> None:
        """What becomes of the next answers whose address contains `path`, one after the other."""
        self.faults[path].extend(faults)

    def fault(self, address: str, *, body: bool = False) -> Fault | None:
        """The next thing to go wrong with an answer; what is wrong with a body waits for one."""
        for path, faults in self.faults.items():
            if faults and path in unquote(address) and (body or isinstance(faults[0], int | Busy)):
                return faults.popleft()
        return None

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def blob(content: bytes) -> str:
    """The name that git gives a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def jsonl(rows: Iterable[Any]) -> bytes:
    """Rows, one a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(Uploads):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802  http.server's name
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        with self.hub.counting:
            self.hub.busy += 1
        try:
            self._tell()
        finally:
            with self.hub.counting:
                self.hub.busy -= 1

    def _tell(self) -> None:
        self.hub.asked.append((self.command, self.path, dict(self.headers)))
        fault = self.hub.fault(self.path)
        if isinstance(fault, int | Busy):
            self._send(
                *(
                    (fault, b"no")
                    if isinstance(fault, int)
                    else (fault.status, b"no", {"Retry-After": str(fault.after)})
                )
            )
            return
        parts = urlsplit(self.path)
        words, query = (
            [unquote(word) for word in parts.path.strip("/").split("/")],
            {k: v[-1] for k, v in parse_qs(parts.query).items()},
        )
        try:
            if words[:2] == ["api", "v1"]:
                self._modelscope(words[2:], query)
            elif words[0] == "api":
                self._huggingface(words[1:], query)
            elif words[0] == "elsewhere":
                self._file("/".join(words[2:]), self._stored(words[1]))
            else:
                self._resolve(words)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # Hugging Face

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository, or None after the answer that there is none for this client."""
        repo = self.hub.repos.get((kind, name))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token in self.hub.expired:
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        if repo is None or (repo.token and not repo.gated and token != repo.token):
            self._send(
                401,
                b'{"error": "Invalid username or password."}',
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
            )
            return None
        return repo

    def _huggingface(self, words: list[str], query: Mapping[str, str]) -> None:
        kind, name, rest = words[0], "/".join(words[1:3]), words[3:]
        repo = self._repo(kind, name)
        if repo is None:
            return
        if rest == ["refs"]:
            refs = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit}
                for ref, commit in repo.refs.items()
                if not ref.startswith("refs/")
            ]
            converts = [
                {"name": ref.rsplit("/", 1)[-1], "ref": ref, "targetCommit": commit}
                for ref, commit in repo.refs.items()
                if ref.startswith("refs/")
            ]
            self._json({"branches": refs, "converts": converts, "tags": []})
            return
        revision = rest[1] if rest else "main"
        commit = repo.commit(revision)
        if commit is None:
            self._send(
                404,
                b'{"error": "Invalid rev id"}',
                {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"},
            )
            return
        files = repo.commits[commit]
        if rest and rest[0] == "tree":
            self._tree(files, query)
            return
        siblings = [{"rfilename": path} for path in files]
        self._json(
            {
                "_id": "1",
                "id": name,
                "sha": commit,
                "siblings": siblings,
                "private": repo.private,
                "gated": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _tree(self, files: Mapping[str, bytes], query: Mapping[str, str]) -> None:
        folders = sorted(
            {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        )
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders
        ]
        for path, content in sorted(files.items()):
            entry: dict[str, Any] = {"type": "file", "oid": blob(content), "size": len(content), "path": path}
            if self._is_large(path, content):
                entry |= {
                    "oid": "1" * 40,
                    "lfs": {
                        "oid": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 130,
                    },
                }
            entries.append(entry)
        first = int(query.get("cursor", 0))
        last = first + self.hub.page
        following = f"{self.hub.pages_at or self.hub.url}{urlsplit(self.path).path}?recursive=true"
        more = {"Link": f'<{following}&cursor={last}>; rel="next"'} if last < len(entries) else {}
        self._json(entries[first:last], more)

    def _resolve(self, words: list[str]) -> None:
        kind, words = ("datasets", words[1:]) if words[0] == "datasets" else ("models", words)
        repo = self._repo(kind, "/".join(words[:2]))
        if repo is None:
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            # with a token that was not let in, or with none
            status = 403 if "Authorization" in self.headers else 401
            self._send(
                status,
                b"",
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this resource is restricted"},
            )
            return
        commit, path = repo.commit(words[3]), "/".join(words[4:])
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return
        content = repo.commits[commit].get(path)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        headers = {"X-Repo-Commit": str(commit)}
        if self._is_large(path, content):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.elsewhere}/elsewhere/{digest}/{quote(path)}",
            }
            self._send(302, b"", headers)
            return
        self._file(path, content, {**headers, "ETag": f'"{blob(content)}"'})

    def _is_large(self, path: str, content: bytes) -> bool:
        return path.endswith(".parquet") or len(content) > self.hub.large

    def _stored(self, digest: str) -> bytes:
        contents = (
            content
            for repo in self.hub.repos.values()
            for files in repo.commits.values()
            for content in files.values()
        )
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)

    # ModelScope

    def _modelscope(self, words: list[str], query: Mapping[str, str]) -> None:
        data_sets = [repo for (kind, _), repo in self.hub.repos.items() if kind == words[0]]
        by_id = len(words) > 1 and words[1].isdecimal()
        rest = words[2:] if by_id else words[3:]
        repo = (
            data_sets[int(words[1])]
            if by_id
            else next((repo for repo in data_sets if repo.name == "/".join(words[1:3])), None)
        )
        cookie = self.headers.get("Cookie", "")
        if repo is None or (repo.token and cookie != f"m_session_id={repo.token}"):
            self._json({"Code": 10010205001, "Message": "record not exist", "Success": False}, status=404)
        elif not rest:
            self._json({"Code": 200, "Data": {"Id": data_sets.index(repo), "Type": 1}, "Success": True})
        elif (commit := repo.commit(query.get("Revision", "master"))) is None:
            gone = {"Code": 10010205001, "Message": "revision not exist", "Success": False}
            self._json(
                *(
                    (gone, None, 404)
                    if "FilePath" in query
                    else ({"Code": 200, "Data": None, "Success": True},)
                )
            )
        elif rest in (["repo", "tree"], ["repo", "files"]):
            files = [
                {
                    "Path": path,
                    "Name": Path(path).name,
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                }
                | {
                    "Type": "blob",
                    "IsLFS": self._is_large(path, content),
                    **self._changed(repo, commit, path),
                }
                for path, content in sorted(repo.commits[commit].items())
            ]
            if rest == ["repo", "tree"]:
                number, size = int(query["PageNumber"]), int(query["PageSize"])
                files = files[(number - 1) * size : number * size]
            else:
                folders = {path.rpartition("/")[0] for path in repo.commits[commit]} - {""}
                files = [
                    {"Path": path, "Name": Path(path).name, "Size": 0, "Sha256": "", "Type": "tree"}
                    for path in folders
                ] + files
            self._json({"Code": 200, "Data": {"Files": files}, "Success": True})
        elif (path := query["FilePath"]) in repo.commits[commit]:
            self._file(path, repo.commits[commit][path])
        else:
            self._json({"Code": 10010205001, "Message": "file not exist", "Success": False}, status=404)

    @staticmethod
    def _changed(repo: Repo, commit: str, path: str) -> dict[str, Any]:
        """The commit up to this one at which a file became what it is, and when."""
        before = list(repo.commits)[: list(repo.commits).index(commit) + 1]
        at = commit
        for number in reversed(range(len(before))):
            if repo.commits[before[number]].get(path) != repo.commits[commit][path]:
                break
            at = before[number]
        return {"Revision": at, "CommittedDate": list(repo.commits).index(at) + 1}

    # Answers

    def _json(self, value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, path: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        fault = self.hub.fault(path, body=True)
        content = fault.body if isinstance(fault, Instead) else content
        wanted, status, first = self.headers.get("Range"), 200, 0
        if wanted and wanted.startswith("bytes="):
            first, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            if first >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
        body = content[first:]
        self.send_response(status)
        ranged = (
            {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if status == 206 else {}
        )
        for name, value in {
            "Content-Length": str(len(body)),
            "Accept-Ranges": "bytes",
            **ranged,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(fault, Cut | Hold):
            body = body[: fault.after]
        self.wfile.write(body)
        self.wfile.flush()
        self.hub.counted[path] += len(body)
        if isinstance(fault, Hold):
            self.hub.held.set()
            self.hub.go.wait(60)
        if isinstance(fault, Cut | Hold):
            self.close_connection = True
