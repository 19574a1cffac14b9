"""Litmus's wire in this process, without a model: as many words as were asked for, and slots that tell of waits."""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from loadtest.peers import clients, servers
from loadtest.peers.clients import Chatter
from loadtest.peers.servers import Peer, Server

PROMPT_TOKENS = 21
CARD = {"id": "fake", "dtype": "float32", "quantize": "none", "device": "cpu", "context": 128}


@dataclass
class Litmuses:
    """`lost`: tokens that every whole answer lacks. `slots`: as its card says; what was asked for where it is None."""

    lost: int = 0
    slots: int | None = None
    told: int = 200
    started: list[Peer] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    ids: Iterator[int] = field(default_factory=itertools.count)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            asked = self.started[-1].command
            slots = self.slots or int(asked[asked.index("--model.slots") + 1])
            return web.json_response({"data": [{**CARD, "slots": slots}]})
        if request.path == "/slots":
            decisions = [{"request": f"chat-{number}/0", "waited_s": 0.25} for number in range(len(self.bodies))]
            return web.json_response({"slots": [], "waiting": [], "texts": 0, "decisions": decisions}, status=self.told)
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
    async def chatter(self, server: Server) -> AsyncIterator[Chatter]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        async with TestServer(app) as local, ClientSession() as http:
            yield Chatter(http, Server(server.peer, str(local.make_url("")).rstrip("/")))


async def events(name: str, tokens: int, usage: dict[str, int]) -> AsyncIterator[bytes]:
    for _ in range(tokens):
        yield event({"id": name, "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
    yield event({"id": name, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def stand_in(monkeypatch: Any) -> Litmuses:
    """Whatever is started is one of these."""
    made = Litmuses()
    monkeypatch.setattr(servers, "running", made.running)
    monkeypatch.setattr(clients, "chatter", made.chatter)
    return made
