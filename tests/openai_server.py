"""An OpenAI-compatible server in this process that answers, refuses and fails as a test tells it. It speaks HTTP itself, so that it can
break off anywhere.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ports import free_port

MODEL = "their-model"
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize")
WORDS = ("one ", "two ", "three")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass
class Call:
    """One request, and what is written in answer to it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    left: threading.Event = field(default_factory=threading.Event)  # the client has closed its connection

    async def reply(self, status: int, body: Any, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        await self._begin(status, names)
        self.writer.write(content)
        await self.writer.drain()

    async def begin_events(self) -> None:
        await self._begin(200, {"content-type": "text/event-stream"})

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} X", "connection: close", *(f"{name}: {value}" for name, value in headers.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self.writer.drain()

    async def send(self, text: str) -> None:
        self.writer.write(text.encode())
        await self.writer.drain()

    async def event(self, content: Any) -> None:
        await self.send(f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n")

    async def until_left(self) -> None:
        """Nothing more comes from the client but the end of its connection."""
        await self.reader.read()
        self.left.set()


Behaviour = Callable[[Call], Awaitable[None]]


def chunk(**choice: Any) -> dict[str, Any]:
    base = {"id": "chatcmpl-theirs", "object": "chat.completion.chunk", "created": 5, "model": MODEL}
    return {**base, "choices": [{"index": 0, "finish_reason": None, **choice}]}


async def answer(call: Call) -> None:
    """A whole answer or a stream, with usage where it is asked for."""
    if call.path == "/v1/embeddings":
        await call.reply(200, {"object": "list", "model": MODEL, "data": [], "usage": {"prompt_tokens": 2, "total_tokens": 2}})
    elif not call.body.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await call.reply(200, {"id": "chatcmpl-theirs", "model": MODEL, "choices": [choice], "usage": USAGE, "theirs": 1})
    else:
        await call.begin_events()
        await call.event(chunk(delta={"role": "assistant", "content": ""}))
        for word in WORDS:
            await call.event(chunk(delta={"content": word}))
        await call.event(chunk(delta={}, finish_reason="stop"))
        if (call.body.get("stream_options") or {}).get("include_usage"):
            await call.event({**chunk(), "choices": [], "usage": USAGE})
        await call.event("[DONE]")


def refusing(status: int, body: object, **headers: str):
    async def behave(call: Call) -> None:
        await call.reply(status, body, **headers)

    return behave


async def drop(call: Call) -> None:
    """The connection ends without a byte."""
    call.writer.transport.abort()


async def two_words(call: Call) -> None:
    """The beginning of a stream, and no end."""
    await call.begin_events()
    await call.event(chunk(delta={"role": "assistant"}))
    await call.event(chunk(delta={"content": "one "}))
    await call.event(chunk(delta={"content": "two "}))


class OpenAIServer:
    """Listens while it is started. `behave` answers what is not a probe; `calls` are those requests."""

    def __init__(self, owner: str = "someone", **card: Any) -> None:
        self.card = {"id": MODEL, "object": "model", "owned_by": owner, "max_model_len": 99, **card}
        self.routes = set(ROUTES)
        self.key: str | None = None  # that it asks for
        self.behave: Behaviour = answer
        self.calls: list[Call] = []
        self.port = free_port()  # also while it does not listen, no client takes it
        self.listens = False
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server
        self._connections: set[asyncio.StreamWriter] = set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """On the same port as before, unless it listens."""
        if not self.listens:
            self._run(self._start())
        self.listens = True

    def kill(self) -> None:
        """Break off all connections, and refuse new ones."""
        self.listens = False
        self._run(self._kill())

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _kill(self) -> None:
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            await self._answer(await _read(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, call: Call) -> None:
        if self.key is not None and call.headers.get("authorization") != f"Bearer {self.key}":
            await call.reply(401, {"error": {"message": "no such key"}})
        elif call.path == "/v1/models":
            await call.reply(200, {"object": "list", "data": [self.card]})
        elif call.path == "/health":
            await call.reply(200, {})
        elif call.path not in self.routes:
            await call.reply(404, {"error": {"message": "no such route"}})
        elif set(call.body) <= {"model"}:
            await call.reply(400, {"error": {"message": "something is missing"}})
        else:
            self.calls.append(call)
            await self.behave(call)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call:
    request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    return Call(request.split()[1], headers, json.loads(content) if content else {}, writer, reader)
