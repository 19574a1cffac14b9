"""A server's state as the page gets it, and visitors whose client answers from a table instead of calling a server."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from app.schemas.overview import EXAMPLE, Overview

MODEL = {
    "id": "storyteller",
    "path": "models/storyteller",
    "revision": "e1d53ff5cc49aa",
    "status": "served",
    "message": None,
    "loaded": 1.0,
    "in_flight": 3,
    "bytes": 412_090_368,
    "of_a_newer_server": True,
}
SUMS = {"weights_bytes": 600, "cache_bytes": 300, "activation_bytes": 60, "overhead_bytes": 40, "total_bytes": 1000}
DEVICES = [
    {"name": "cuda:0", "free_bytes": 800, "total_bytes": 2000, "fits": False},
    {"name": "<cpu>", "free_bytes": 5000, "total_bytes": 9000, "fits": True, "context": 8192},
]
ESTIMATE = {**SUMS, "devices": DEVICES, "advice": ["Quantize it: <nf4> takes 400 bytes less."]}


def envelope(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def state(at: float = 1000.0, started: int = 500, **changes: Any) -> Overview:
    return Overview.model_validate({**EXAMPLE, "at": at, "started": started, **changes})


def model(**changes: Any) -> dict[str, Any]:
    return {**EXAMPLE["models"][0], **changes}


class Server:
    """`answers` are (status, body) by method and path; every other route is a 404. `calls` are those that came."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "GET /overview": (200, state().model_dump()),
            "GET /admin/models": (200, {"object": "list", "data": [MODEL]}),
            "POST /admin/models/storyteller": (202, {**MODEL, "status": "loading", "loaded": 0.0}),
            "DELETE /admin/models/storyteller": (202, {**MODEL, "status": "draining"}),
            "POST /admin/estimate": (200, ESTIMATE),
        }
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self.share_a_key = False
        self.keys = False
        self.logged_in = False

    async def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        if self.error is not None:
            raise self.error
        self.calls.append((f"{method} {path}", body))
        status, answer = self.answers.get(f"{method} {path.partition('?')[0]}", (404, envelope("no such route")))
        content = {"content": answer} if isinstance(answer, str) else {"json": answer}
        return httpx.Response(status, request=httpx.Request(method, f"http://server{path}"), **content)

    def client(self, request: Any) -> "Server":
        return self

    async def wants_keys(self) -> bool:
        return self.keys

    def is_logged_in(self, request: Any) -> bool:
        return self.logged_in


@pytest.fixture
def server() -> Server:
    return Server()


def visit(host: str = "127.0.0.1", **headers: str) -> Any:
    """A call of the page, as Gradio passes it on."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return SimpleNamespace(request=Request({"type": "http", "client": (host, 1), "headers": raw, "method": "POST", "path": "/"}))
