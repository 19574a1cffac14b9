"""A fake Litmus without a model, in this process: answers have as many words as were asked for, and /slots reports waits."""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from loadtest.peers import clients, servers
from loadtest.peers.clients import ChatClient
from loadtest.peers.servers import Peer, Server

PROMPT_TOKENS = 21
CARD = {"id": "fake", "dtype": "float32", "quantize": "none", "device": "cpu", "context": 128}


@dataclass
class FakeLitmus:
    """The faults and the log of the fake.

    `lost`: tokens that every answer without streaming lacks. `slots`: the number on its card; None: as its command line says.
    `slots_status`: the HTTP status of /slots.
    """

    lost: int = 0
    slots: int | None = None
    slots_status: int = 200
    started: list[Peer] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=itertools.count)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            command = self.started[-1].command
            slots = self.slots or int(command[command.index("--model.slots") + 1])
            return web.json_response({"data": [{**CARD, "slots": slots}]})
        if request.path == "/slots":
            decisions = [{"request": f"chat-{number}/0", "waited_s": 0.25} for number in range(len(self.bodies))]
            return web.json_response({"slots": [], "waiting": [], "texts": 0, "decisions": decisions}, status=self.slots_status)
        body = await request.json()
        self.bodies.append(body)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": body["max_tokens"] - (0 if body.get("stream") else self.lost)}
        if not body.get("stream"):
            return web.json_response({"usage": usage})
        response = web.StreamResponse()
        await response.prepare(request)
        async for data in events(f"chat-{next(self.ids)}", body["max_tokens"], usage):
            await response.write(data)
        return response

    @contextmanager
    def running(self, peer: Peer, *_: Any) -> Iterator[Server]:
        self.started.append(peer)
        yield Server(peer, "http://litmus")

    @asynccontextmanager
    async def connect(self, server: Server) -> AsyncIterator[ChatClient]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        async with TestServer(app) as local, ClientSession() as http:
            yield ChatClient(http, Server(server.peer, str(local.make_url("")).rstrip("/")))


async def events(name: str, tokens: int, usage: dict[str, int]) -> AsyncIterator[bytes]:
    for _ in range(tokens):
        yield event({"id": name, "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
    yield event({"id": name, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def replace_servers(monkeypatch: Any) -> FakeLitmus:
    """Makes every server that a study starts this fake."""
    fake = FakeLitmus()
    monkeypatch.setattr(servers, "running", fake.running)
    monkeypatch.setattr(clients, "connect", fake.connect)
    return fake
