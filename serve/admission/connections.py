"""Bounds how many connections are open and how long each may keep the server waiting: for a request, for a body, or to read an answer.

uvicorn has a time-out for idle connections only. Knows no route: `serve.body` answers 408 to a body that is too slow.
"""

import array
import asyncio
import contextlib
import fcntl
import logging
import math
import os
import resource
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from app.settings import ServerSettings
from serve.admission.protocol import MAX_HEAD_BYTES, TOO_LARGE, Protocol

log = logging.getLogger(__name__)

Stage = Literal["request", "body", "answer", "idle"]
SWEEP_S = 1.0
MIN_BODY_BYTES_PER_S = 1000
MAX_FRAMING = 8  # times the bytes of a body that its chunks may take beside
GRACE_S = 5.0  # the application answers 408 to a slow body; its connection is closed later, if it did not
FILES_BESIDE = 256  # descriptors that the process needs for other things than connections
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `body_s` is extended while at least `MIN_BODY_BYTES_PER_S` arrive on average."""

    request_s: float  # request line and headers
    body_s: float
    idle_s: float
    write_s: float  # without a byte that the client takes


def body_deadline_s(received: int, body_s: float) -> float:
    """Seconds after the headers until which more of a body has to arrive, of which `received` bytes have."""
    return max(body_s, received / MIN_BODY_BYTES_PER_S)


class TimedProtocol(Protocol):
    """An HTTP connection, which remembers what it waits for and since when."""

    def __init__(self, bounds: "Connections", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.bounds = bounds
        self.stage: Stage = "request"
        self.since = 0.0  # when the stage began
        self.begun = False  # a byte of the request has come
        self.received = 0  # bytes of the body
        self.read = 0  # bytes of this stage, the frame of the body included
        self.unsent = 0  # bytes that the client had not taken at the last look
        self.taken_at = 0.0  # when it last took some

    def _enter(self, stage: Stage) -> None:
        self.stage, self.since, self.read = stage, self.loop.time(), 0
        self.bounds.note_idle(self, stage == "idle")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("request")
        self.bounds.make_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bounds.note_idle(self, False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.read += len(data)
        if self.read > MAX_HEAD_BYTES and self.stage == "request" and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()
        elif self.stage == "body" and self.read - MAX_FRAMING * self.received > 2 * MAX_HEAD_BYTES + len(data):
            _abort(self)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.begun, self.received = True, 0
        self._enter("request")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._enter("body")

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.begun = False
        self._enter("idle" if self.cycle is not None and self.cycle.response_complete else "answer")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.stage == "answer" and not self.pipeline and self.cycle.response_complete:
            self._enter("idle")


class Connections:
    """All connections of the server. `protocol` is what uvicorn makes them with; `watch` closes those that are late."""

    def __init__(self, max_connections: int, timeouts: Timeouts) -> None:
        self.max_connections = max_connections
        self.timeouts = timeouts
        self._idle: dict[TimedProtocol, None] = {}  # the one that has been idle longest is first
        self._open: set[Any] = set()  # uvicorn's own set

    def protocol(self, **arguments: Any) -> TimedProtocol:
        made = TimedProtocol(self, **arguments)
        self._open = made.connections
        return made

    def note_idle(self, connection: TimedProtocol, idle: bool) -> None:
        self._idle.pop(connection, None)
        if idle:
            self._idle[connection] = None

    def make_room(self, connection: TimedProtocol) -> None:
        """For a connection beyond the bound, close the one that has been idle longest; where none is idle, the new one."""
        if len(self._open) <= self.max_connections:
            return
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            self.note_idle(oldest, False)
            oldest.transport.abort()
            return
        connection.transport.write(BUSY)
        connection.transport.close()

    async def watch(self) -> None:
        """Run as long as the server."""
        clock = asyncio.get_running_loop().time
        self.max_connections = allow_files(self.max_connections)
        while True:
            await asyncio.sleep(SWEEP_S)
            closed = self.sweep(clock())
            if closed:
                log.info("closed %d connections that were too slow or idle too long", closed)

    def sweep(self, now: float) -> int:
        """Close the connections that are late at `now`, and return their number."""
        late = 0
        for connection in list(self._open):
            if not isinstance(connection, TimedProtocol):
                continue  # not HTTP any more
            close = overdue(connection, now, self.timeouts)
            if close is not None:
                close(connection)
                late += 1
        return late


def create_connections(settings: ServerSettings) -> Connections:
    timeouts = Timeouts(settings.header_timeout_s, settings.body_timeout_s, settings.idle_timeout_s, settings.write_timeout_s)
    return Connections(settings.max_connections, timeouts)


def uvicorn_options(settings: ServerSettings, connections: Connections) -> dict[str, Any]:
    """A client could write any address into X-Forwarded-For: it is read only where a proxy that is trusted has written it."""
    return {
        "http": connections.protocol,
        "backlog": settings.max_connections,  # those that come at once are kept waiting rather than made to try again
        "timeout_keep_alive": math.ceil(settings.idle_timeout_s),
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": [*settings.trusted_proxies],
    }


def overdue(connection: TimedProtocol, now: float, timeouts: Timeouts) -> Callable[[TimedProtocol], None] | None:
    """How to close a connection that is late; None for one that is not."""
    if _stalls(connection, now, timeouts.write_s):
        return _abort
    if connection.stage in {"request", "body"} and connection.flow.read_paused:
        connection.since = now  # the server is not reading: it is not the client that is late
    if connection.transport.is_closing() or now - connection.since <= _allowed_s(connection, timeouts):
        return None
    if connection.stage == "body":
        return _abort
    return _answer_late if connection.begun else _close


def _allowed_s(connection: TimedProtocol, timeouts: Timeouts) -> float:
    """How long a stage may take. The answer is the server's: it takes as long as it takes."""
    return {
        "request": timeouts.request_s,
        "body": body_deadline_s(connection.received, timeouts.body_s) + GRACE_S,
        "answer": math.inf,
        "idle": timeouts.idle_s,
    }[connection.stage]


def _stalls(connection: TimedProtocol, now: float, write_s: float) -> bool:
    """Whether the client has not taken a byte of what waits for it in `write_s`."""
    if connection.transport.get_write_buffer_size() == 0:
        connection.unsent = 0
        return False
    unsent = connection.transport.get_write_buffer_size() + _in_kernel(connection.transport)
    if unsent != connection.unsent:
        connection.unsent, connection.taken_at = unsent, now
    return now - connection.taken_at > write_s


def _in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that the system has taken and the client has not: without them a slow reader would look like one that stopped."""
    pending, opened = array.array("i", [0]), transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed meanwhile
        fcntl.ioctl(-1 if opened is None else opened.fileno(), termios.TIOCOUTQ, pending)
    return pending[0]


def _answer_late(connection: TimedProtocol) -> None:
    connection.transport.write(TOO_LATE)
    connection.transport.close()


def _close(connection: TimedProtocol) -> None:
    connection.transport.close()


def _abort(connection: TimedProtocol) -> None:
    """Reset the connection: closed otherwise, the system would keep for minutes what the client did not take."""
    opened = connection.transport.get_extra_info("socket")
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(-1 if opened is None else opened.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()


def allow_files(connections: int) -> int:
    """Raise the process's bound on open files as far as `connections` ask for. Returns how many connections it allows."""
    wanted = connections + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = max(soft - FILES_BESIDE, 1)
    log.warning("server.max_connections is %d, but the system lets this process open %d files: taking %d", connections, soft, allowed)
    return allowed
