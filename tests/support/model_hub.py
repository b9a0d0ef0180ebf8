"""A hub of model repositories on loopback: as much of the Hugging Face protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    files: Mapping[str, bytes]
    gated: bool

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        download = f"/owner/model/resolve/{COMMIT}/"
        revisions = [f"/api/models/owner/model/revision/{name}" for name in ("main", COMMIT)]
        if path in revisions:
            self._send(json.dumps({"id": "owner/model", "sha": COMMIT}).encode(), body)
        elif path == f"/api/models/owner/model/tree/{COMMIT}":
            entries = [_entry(*item) for item in self.files.items()]
            self._send(json.dumps(entries).encode(), body)
        elif path.startswith("/api/models/owner/model/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif not path.startswith(download):
            self._refuse(401, "RepoNotFound")
        elif self.gated:
            self._refuse(403, "GatedRepo")
        else:
            content = self.files[path.removeprefix(download)]
            self._send(content, body, ETag=f'"{_git_id(content)}"', X_Repo_Commit=COMMIT)

    def _send(self, content: bytes, body: bool, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def model_hub(files: Mapping[str, bytes], *, gated: bool = False) -> Iterator[str]:
    """Serves the public repository `owner/model`, of one commit on "main"; yields the hub's address."""
    handler = type("Hub", (_Hub,), {"files": files, "gated": gated})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
