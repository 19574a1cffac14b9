"""A uvicorn in a thread with bounds on its connections, and raw connections to it."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from serving import wait_for
from starlette.types import Receive, Scope, Send

from app.settings import ServerSettings
from serve.admission.connections import Connections, Timeouts, create_connections, uvicorn_options
from serve.admission.gate import Gate
from serve.admission.pace import Pace
from serve.body import RequestBody

SECONDS = Timeouts(request_s=10, body_s=30, idle_s=75, write_s=60)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@dataclass
class FakeWork:
    capacity: int = 1
    in_flight: int = 0


@dataclass
class Application:
    """Answers with the body it was sent; /endless streams until its client is gone, and says how that ended."""

    ended: list[str] = field(default_factory=list)
    sent: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            await self._stream(receive, send)
            return
        message = await receive()
        await send({"type": "http.response.body", "body": message.get("body", b"")})

    async def _stream(self, receive: Receive, send: Send) -> None:
        async def write() -> None:
            while True:
                await send({"type": "http.response.body", "body": bytes(50_000), "more_body": True})
                self.sent += 50_000
                await asyncio.sleep(0)  # nothing is waited for once the client is gone, so that its end would not be seen

        writing = asyncio.create_task(write())
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()
        self.ended.append("disconnected")


@dataclass
class Running:
    port: int
    connections: Connections
    application: Application
    loop: asyncio.AbstractEventLoop
    work: FakeWork

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # of a fixed size: else the system lets it grow
        client.settimeout(60)
        client.connect(("127.0.0.1", self.port))
        client.sendall(data)
        return client

    def after(self, seconds: float) -> int:
        """Look at the connections as if that much time had passed since the latest of them did something. Returns how many were closed."""
        done: list[int] = []

        def sweep() -> None:
            latest = max((max(connection.since, connection.taken_at) for connection in self.connections._open), default=0.0)
            done.append(self.connections.sweep(latest + seconds))

        self.loop.call_soon_threadsafe(sweep)
        wait_for(lambda: bool(done))
        return done[0]

    def wait_stalled(self) -> None:
        """Until nothing more fits on the way to the only client, which does not read."""
        unsent = [0]
        while len(unsent) < 5 or len(set(unsent[-4:])) > 1:
            time.sleep(0.05)
            self.after(0)
            unsent += [connection.unsent for connection in self.connections._open]
        assert 0 < self.application.sent < 20_000_000

    def stages(self) -> list[str]:
        return sorted(connection.stage for connection in list(self.connections._open))


@contextmanager
def running(max_connections: int = 300, body_timeout_s: float = 30) -> Iterator[Running]:
    application, work = Application(), FakeWork()
    app = Gate(RequestBody(application, 10_000_000, body_timeout_s), work, Pace())
    settings = ServerSettings(max_connections=max_connections)
    connections = create_connections(settings)
    assert connections.timeouts == SECONDS
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", **uvicorn_options(settings, connections)))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield Running(server.servers[0].sockets[0].getsockname()[1], connections, application, loops[0], work)
    server.force_exit = server.should_exit = True
    thread.join(60)


def read_all(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


def closed(client: socket.socket) -> bool:
    try:
        return read_all(client) == b""
    except ConnectionResetError:
        return True


def answer(client: socket.socket) -> bytes:
    """One answer of a connection that stays open; they all have chunks, or are refusals with a length."""
    data = b""
    while not data.endswith((b"0\r\n\r\n", b"}")):
        piece = client.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return data
