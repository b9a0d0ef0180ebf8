"""A hub of model and data set repositories on loopback: as much of the Hugging Face protocol as a download
needs."""

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
    api = "/api/models/owner/model"
    download = "/owner/model/resolve/"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        url = urlsplit(self.path)
        path, tree = unquote(url.path), f"{self.api}/tree/{COMMIT}"
        revisions = [f"{self.api}/revision/{name}" for name in ("main", COMMIT)]
        if path in revisions:
            said = {"id": "owner/model", "sha": COMMIT, "siblings": _siblings(self.files)}
            self._send(json.dumps(said).encode(), body)
        elif path == tree or path.startswith(f"{tree}/"):
            folder = path.removeprefix(tree).strip("/")
            entries = _tree(self.files, folder, whole="recursive=false" not in url.query.lower())
            self._send(json.dumps(entries).encode(), body)
        elif path.startswith(f"{self.api}/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif not path.startswith(self.download):
            self._refuse(401, "RepoNotFound")
        elif self.gated:
            self._refuse(403, "GatedRepo")
        else:
            _, _, name = path.removeprefix(self.download).partition("/")
            if name not in self.files:
                return self._refuse(404, "EntryNotFound")
            content = self.files[name]
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


class _DataHub(_Hub):
    api = "/api/datasets/owner/set"
    download = "/datasets/owner/set/resolve/"


@contextmanager
def model_hub(files: Mapping[str, bytes], *, gated: bool = False) -> Iterator[str]:
    """Serves the public repository `owner/model`, of one commit on "main"; yields the hub's address."""
    with _serve(type("Hub", (_Hub,), {"files": files, "gated": gated})) as address:
        yield address


@contextmanager
def data_hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """The same of the data set `owner/set`."""
    with _serve(type("Hub", (_DataHub,), {"files": files, "gated": False})) as address:
        yield address


@contextmanager
def _serve(handler: type[_Hub]) -> Iterator[str]:
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


def _siblings(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    return [{"rfilename": name} for name in files]


def _tree(files: Mapping[str, bytes], folder: str, *, whole: bool) -> list[dict[str, object]]:
    """What lies in a folder; with `whole`, in those inside it too."""
    prefix = f"{folder}/" if folder else ""
    inside = {name: files[name] for name in files if name.startswith(prefix)}
    if whole:
        return [_entry(*item) for item in inside.items()]
    folders = {name.removeprefix(prefix).partition("/")[0] for name in inside}
    found = [_entry(name, inside[name]) for name in inside if "/" not in name.removeprefix(prefix)]
    names = sorted(folders - {str(entry["path"]).removeprefix(prefix) for entry in found})
    return [*found, *({"type": "directory", "path": prefix + n, "oid": "0" * 40} for n in names)]


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
