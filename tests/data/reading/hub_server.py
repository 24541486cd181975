"""A server that answers as the Hugging Face hub does for one data set."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY, COMMIT = "owner/name", "a" * 40


class _Handler(BaseHTTPRequestHandler):
    files: Mapping[str, bytes]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            self._send_file(path.split("/", 5)[5])
        elif path.startswith(f"/api/datasets/{REPOSITORY}/tree/"):
            self._send_tree(path.removeprefix(f"/api/datasets/{REPOSITORY}/tree/").partition("/")[2])
        elif path.startswith(f"/api/datasets/{REPOSITORY}"):
            siblings = [{"rfilename": file} for file in self.files]
            self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        else:
            self._send(404, b"")

    do_HEAD = do_GET  # noqa: N815  the handler's own name

    def log_message(self, *_: object) -> None:
        pass

    def _send_file(self, path: str) -> None:
        name = path.partition("/")[2] if path.startswith((COMMIT, "main")) else path
        if name in self.files:
            self._send(200, self.files[name], ETag=f'"{_id(self.files[name])}"')
        else:
            self._send(404, b"", **{"X-Error-Code": "EntryNotFound"})

    def _send_tree(self, folder: str) -> None:
        start = f"{folder}/" if folder else ""
        below = {file: content for file, content in self.files.items() if file.startswith(start)}
        recursive = "recursive=true" in self.path.lower()
        entries: dict[str, Any] = {}
        for file, content in below.items():
            first, *rest = file.removeprefix(start).split("/")
            if rest:
                entries[start + first] = {
                    "type": "directory",
                    "path": start + first,
                    "oid": "0" * 40,
                    "size": 0,
                }
            if not rest or recursive:
                entries[file] = {"type": "file", "path": file, "oid": _id(content), "size": len(content)}
        if below:
            self._send_json(list(entries.values()))
        else:
            self._send(404, b"", **{"X-Error-Code": "EntryNotFound"})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _id(content: bytes) -> str:
    """The id of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve the files of `REPOSITORY` at `COMMIT`; the value is the server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
