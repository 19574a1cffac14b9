"""As much of the hub as huggingface_hub asks for a download, over HTTP: lists of files with their hashes, files, ranges of them, refusals.

It can break a download off, send something else than it lists, and it counts what it sends.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT, OLDER = "c0ffee" * 6 + "c0ff", "0ddba11" * 5 + "0ddba"
LARGE = (".safetensors", ".gguf", ".bin")  # kept by LFS, so listed with their SHA-256


@dataclass
class FakeHub:
    """Repositories by name and commit. `breaks` counts how often a file is cut after half of what was asked; `damaged` is sent changed."""

    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "older": OLDER})
    gated: set[str] = field(default_factory=set)
    breaks: Counter[str] = field(default_factory=Counter)
    damaged: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of each file
    ranges: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def run(self) -> Iterator["FakeHub"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def commit(self, revision: str) -> str:
        return self.branches.get(revision, revision)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repository, rest = "/".join(parts[:2]), parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if repository in self.hub.gated:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"}, send)
        elif repository not in self.hub.files:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, send)
        elif self.hub.commit(revision) not in self.hub.files[repository]:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, send)
        elif is_api and rest[:1] == ["tree"]:  # of a folder: there are none
            self._send(200, b"[]", {"Content-Type": "application/json"}, send)
        elif is_api:
            self._list(repository, self.hub.commit(revision), send)
        else:
            self._file(repository, self.hub.commit(revision), "/".join(rest[2:]), send)

    def _list(self, repository: str, commit: str, send: bool) -> None:
        siblings: list[dict[str, Any]] = []
        for name, data in self.hub.files[repository][commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"}, send)

    def _file(self, repository: str, commit: str, name: str, send: bool) -> None:
        data = self.hub.files[repository][commit].get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, send)
            return
        tag = hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_hash(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status, asked = 0, 200, self.headers.get("Range")
        if asked is not None:
            self.hub.ranges.append(asked)
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(status, data[start:], headers, send, name)

    def _send(self, status: int, body: bytes, headers: dict[str, str], send: bool, name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not send:
            return
        if self.hub.breaks[name] > 0:
            self.hub.breaks[name] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.hub.sent[name] += len(body)
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass
