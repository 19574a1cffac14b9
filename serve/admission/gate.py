"""Refuses work that surely finds no room before its body is read: a full server answers from bytes that are ready.

Outside of it are only the observer, the headers, the neighbours, CORS and the doubles of paths. It counts requests and knows neither
jobs nor models; `Fleet.admit` decides exactly, and later.
"""

import json
from functools import lru_cache
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import QueueFull
from serve.admission.pace import Pace
from serve.admission.turns import Turns
from serve.observe.record import note_route
from serve.wire.errors import MESSAGES, error_body

WORK = frozenset(
    {
        "/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/responses",
        "/v1/score",
    }
)
MIN_ROOM = 8
ROOM = 1 / 8  # of the capacity: requests whose bodies are read beyond it, so that places that become free are taken at once


class Work(Protocol):
    """What the gate asks of the router."""

    @property
    def capacity(self) -> int:
        """Jobs of all models that may be in flight."""

    @property
    def in_flight(self) -> int:
        """Jobs that are."""


def is_work(scope: Scope) -> bool:
    """Whether a request asks for jobs: state, pages and the counting of tokens are never limited."""
    return scope["type"] == "http" and scope["method"] == "POST" and work_of(scope) in WORK


def work_of(scope: Scope) -> str:
    """The path, which for work is the template of its route."""
    path: str = scope["path"].rstrip("/")
    return path


def expects_word(scope: Scope) -> bool:
    """Whether the client waits for `100 Continue` before its body. When it is refused instead, nobody knows whether a body follows, so that
    the connection has to end.
    """
    return any(name == b"expect" for name, _ in scope["headers"])


class Gate:
    """Lets work in while its requests, from the last byte of their body to the last byte of their answer, are fewer than the server takes.

    A request that is still sending its body does not count, so that slow senders take nobody's place; it is looked at again at its end.
    """

    def __init__(self, app: ASGIApp, work: Work, pace: Pace) -> None:
        self.app = app
        self.work = work
        self.pace = pace
        self.turns = Turns()
        self.on_way = 0  # requests with work that have been let in and not been answered

    @property
    def full(self) -> bool:
        capacity = self.work.capacity
        return self.work.in_flight >= capacity or self.on_way >= capacity + max(MIN_ROOM, int(capacity * ROOM))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
        elif self.full:
            await self._refuse(scope, send)
        else:
            await _Visit(self, scope, receive, send).run()

    async def _refuse(self, scope: Scope, send: Send) -> None:
        note_route(work_of(scope))
        await send_refusal(scope, send, refusal(scope["path"].startswith(MESSAGES), self.work.capacity), self.pace.retry_after_s())

    async def enter(self, scope: Scope, send: Send) -> bool:
        """Count a request whose body has come. False: it was refused instead."""
        if self.full:
            await self._refuse(scope, send)
            return False
        self.on_way += 1
        return True

    def leave(self, answered: bool) -> None:
        self.on_way -= 1
        if answered:
            self.pace.finish()


class _Visit:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.scope = gate, scope
        self._receive, self._send = receive, send
        self.entered = False
        self.answered = False

    async def run(self) -> None:
        try:
            await self.gate.app(self.scope, self.receive, self.send)
        finally:
            if self.entered:
                self.gate.leave(self.answered)

    async def receive(self) -> Message:
        message = await self._receive()
        if not self.entered and message["type"] == "http.request" and not message.get("more_body"):
            self.entered = await self.gate.enter(self.scope, self._send)
            if not self.entered:
                return {"type": "http.disconnect"}  # the client has its answer: for the application it has left
            await self.gate.turns.wait()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = message["status"] < 400
        await self._send(message)


@lru_cache
def refusal(messages: bool, capacity: int) -> bytes:
    """The body of a refusal, in Anthropic's form for `messages`, else in OpenAI's."""
    error = QueueFull(
        f"the server is full: at most {capacity} answers and texts are in flight (the slots of its models and queue.max_waiting); "
        "the header Retry-After says when to try again"
    )
    return json.dumps(error_body(error, MESSAGES if messages else "")).encode()


async def send_refusal(scope: Scope, send: Send, body: bytes, retry_after_s: int) -> None:
    """Answer 429. A connection goes on afterwards: the server drops what is left of the body."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % retry_after_s),
    ]
    if expects_word(scope):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})
