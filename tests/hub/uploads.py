"""What the local hub answers to those that write: repositories are made, large files are stored by their
digests, and a commit takes all of it in one.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from tests.hub.server import Hub


class Uploads(BaseHTTPRequestHandler):
    """The part of a handler that writes."""

    hub: "Hub"

    def do_PUT(self) -> None:
        self.hub.asked.append((self.command, self.path, dict(self.headers)))
        content = self._body()
        if (fault := self.hub.fault(self.path)) is not None:
            assert isinstance(fault, int)
            self._told(fault, {})
            return
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.stored[digest] = content
        self.hub.counted[digest] += len(content)
        self._told(200, {})

    def do_POST(self) -> None:
        self.hub.asked.append((self.command, self.path, dict(self.headers)))
        body, words = self._body(), [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if words[:2] == ["api", "validate-yaml"]:
            self._told(200, {"errors": [], "warnings": []})
        elif not token or token in self.hub.expired:
            self._told(401, {"error": "Invalid username or password."})
        elif words == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif words[-3:] == ["lfs", "objects", "batch"]:
            self._told(200, {"transfer": "basic", "objects": self._wanted(json.loads(body))})
        elif words[4:5] == ["preupload"]:
            asked = json.loads(body)["files"]
            self._told(200, {"files": [self._mode(file) for file in asked]})
        elif words[4:5] == ["commit"]:
            self._commit("/".join(words[2:4]), words[5], body)
        else:
            self._told(404, {"error": self.path})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, wish: dict[str, Any]) -> None:
        from tests.hub.server import Repo

        name = "/".join(filter(None, [wish.get("organization"), wish["name"]]))
        if ("models", name) in self.hub.repos:
            self._told(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        repo = Repo(name=name, kind="models", commits={"0" * 40: {}}, refs={"main": "0" * 40})
        repo.private = wish.get("private", False) or wish.get("visibility") == "private"
        self.hub.repos["models", name] = repo
        self._told(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors") or file["size"] >= self.hub.large
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": None,
        }

    def _wanted(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """Where each object that is not here is to be sent."""
        return [
            {"oid": one["oid"], "size": one["size"]}
            | (
                {}
                if one["oid"] in self.hub.stored
                else {"actions": {"upload": {"href": f"{self.hub.url}/sent/{one['oid']}"}}}
            )
            for one in asked["objects"]
        ]

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self.hub.repos["models", name]
        files = dict(repo.commits[repo.refs[branch]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = hashlib.sha1(body).hexdigest()
        repo.commits[commit], repo.refs[branch] = files, commit
        told = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}
        self._told(200, told)

    def _told(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/vnd.git-lfs+json" if "lfs" in self.path else "application/json"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
