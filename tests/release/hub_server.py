"""A server that answers the few calls with which the hub's client uploads a model. It is only an imitation."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_test"
COMMIT = "d" * 40


@dataclass
class Hub:
    """The content of the server: repositories and uploaded objects."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """The titles of the commits."""

    def create(self, repo: str, private: bool) -> None:
        self.private[repo], self.files[repo] = private, {".gitattributes": b""}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not self._logged_in():
            return
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/whoami-v2":
            self._send({"name": "tester", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif repo not in self.hub.files:
            self._send({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif path == f"/api/models/{repo}":
            siblings = [{"rfilename": name} for name in self.hub.files[repo]]
            self._send({"id": repo, "sha": COMMIT, "private": self.hub.private[repo], "siblings": siblings})
        elif path.startswith(f"/api/models/{repo}/tree/"):
            self._send(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in self.hub.files[repo].items()
                ]
            )

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        if not self._logged_in():
            return
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            data = json.loads(body)
            repo = f"{data['organization']}/{data['name']}"
            if repo in self.hub.files:
                self._send({"error": "You already created this model repo", "url": f"/{repo}"}, 409)
            else:
                self.hub.create(repo, data["visibility"] == "private")
                self._send({"url": f"{self.hub.address}/{repo}", "name": repo})
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif path == f"/api/models/{repo}/preupload/main":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            uploads = [
                {**each, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}}
                for each in wanted
            ]
            self._send({"transfer": "basic", "objects": uploads})
        elif path == f"/api/models/{repo}/commit/main":
            self._commit(repo, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        self.hub.objects[self.path.removeprefix("/lfs/")] = self.rfile.read(length)
        self._send({})

    def log_message(self, *_: object) -> None:
        pass

    def _commit(self, repo: str, operations: list[dict[str, Any]]) -> None:
        files = self.hub.files[repo]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self._send(
            {"commitUrl": f"{self.hub.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        )

    def _logged_in(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {TOKEN}":
            return True
        self._send({"error": "Invalid credentials"}, 401)
        return False

    def _send(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            **headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
