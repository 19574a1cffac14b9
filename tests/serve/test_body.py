"""Bodies that are refused unread: by their header, and where a client waits for `100 Continue` and no route is there."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI
from starlette.types import Message

from serve.body import MAX_READ_FACTOR
from serve.middleware import install

LIMIT = 100
JSON, EXPECT = (b"content-type", b"application/json"), (b"expect", b"100-continue")


def create() -> FastAPI:
    app = FastAPI()
    install(app, LIMIT)

    @app.post("/take")
    async def take(number: dict[str, int]) -> int:
        return number["a"]

    @app.get("/look")
    async def look() -> int:
        return 1

    return app


@dataclass
class Client:
    """Sends one request, and counts how often its body is asked for: the first time makes the server say `100 Continue`."""

    body: bytes = b'{"a": 7}'
    reads: int = 0
    sent: list[Message] = field(default_factory=list)

    async def receive(self) -> Message:
        self.reads += 1
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def ask(self, path: str, length: int | None, *headers: tuple[bytes, bytes]) -> tuple[int, str | None, bool]:
        """Status, code of the error, and whether the connection ends."""
        sized = [] if length is None else [(b"content-length", b"%d" % length)]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [JSON, *sized, *headers]}
        asyncio.run(create()(scope, self.receive, self.send))
        answer = json.loads(self.sent[1]["body"])
        code = answer["error"]["code"] if isinstance(answer, dict) else None
        return self.sent[0]["status"], code, (b"connection", b"close") in self.sent[0]["headers"]


@pytest.mark.parametrize(
    ("path", "length", "headers", "answer"),
    [
        ("/take", LIMIT + 1, [EXPECT], (413, "body_too_large", True)),
        ("/take", LIMIT * MAX_READ_FACTOR + 1, [], (413, "body_too_large", True)),
        ("/nowhere", 8, [EXPECT], (404, "not_found", True)),
        ("/look", 8, [EXPECT], (405, "bad_request", True)),
    ],
)
def test_a_body_that_is_refused_anyway_is_not_read(
    path: str, length: int, headers: list[tuple[bytes, bytes]], answer: tuple[int, str, bool]
) -> None:
    client = Client()
    assert (client.ask(path, length, *headers), client.reads) == (answer, 0)


@pytest.mark.parametrize(
    ("path", "body", "length", "headers", "answer"),
    [
        ("/take", b'{"a": 7}', 8, [EXPECT], (200, None, False)),
        ("/take/", b'{"a": 7}', 8, [EXPECT], (200, None, False)),
        ("/take", b'{"a": 7}', None, [EXPECT], (200, None, False)),
        ("/take", b" " * (LIMIT + 1), None, [EXPECT], (413, "body_too_large", False)),
        ("/take", b" " * (LIMIT + 1), LIMIT + 1, [], (413, "body_too_large", False)),
        ("/nowhere", b"{}", 2, [], (404, "not_found", False)),
    ],
)
def test_any_other_body_is_read(
    path: str, body: bytes, length: int | None, headers: list[tuple[bytes, bytes]], answer: tuple[int, str | None, bool]
) -> None:
    client = Client(body)
    assert (client.ask(path, length, *headers), client.reads) == (answer, 1)
