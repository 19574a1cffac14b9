"""A server behind a proxy, in a thread of this process: it records what reaches it and fails on demand.

It writes HTTP itself, because a web framework would not close a connection without an answer. One request a connection.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Behaviour = Literal["answer", "stream", "drain", "break off"]
HEAD = "HTTP/1.1 {status}\r\nContent-Type: {type}\r\nX-Server: {name}\r\nConnection: close\r\n\r\n"
EVENTS = ("data: first\n\n", "data: second\n\n")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Upstream:
    """`stream` sends the first event and waits for `go_on` or for the client to leave, which sets `left`. `heads` counts requests that
    have begun, `requests` has those that are whole.
    """

    name: str
    port: int = 0
    behaviour: Behaviour = "answer"
    requests: list[Request] = field(default_factory=list)
    heads: int = 0
    go_on: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # a client may leave at any time
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads += 1
            self.requests.append(await read(head, reader))
            await self.reply(reader, writer)
        writer.close()

    async def reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.behaviour == "break off":
            return
        status = "503 Service Unavailable" if self.behaviour == "drain" else "200 OK"
        kind = "text/event-stream" if self.behaviour == "stream" else "text/plain"
        writer.write(HEAD.format(status=status, type=kind, name=self.name).encode())
        if self.behaviour == "stream":
            await self.stream(reader, writer)
        await writer.drain()

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS[0].encode())
        await writer.drain()
        leaving = asyncio.create_task(reader.read())  # ends when the other side closes
        while not self.go_on.is_set() and not leaving.done():
            await asyncio.sleep(0.005)
        if leaving.done():
            self.left.set()
        leaving.cancel()
        writer.write(EVENTS[1].encode())


async def read(head: bytes, reader: asyncio.StreamReader) -> Request:
    lines = head.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines[1:] if line)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@contextmanager
def running(*upstreams: Upstream) -> Iterator[None]:
    """Listens for all of them until the end, on ports that it writes into them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen(upstream: Upstream) -> Any:
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
        upstream.port = server.sockets[0].getsockname()[1]
        return server

    servers = [asyncio.run_coroutine_threadsafe(listen(upstream), loop).result(60) for upstream in upstreams]
    yield
    for server in servers:
        loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
