"""The clients of the load: steady ones that repeat their lists, bursts of many at once, and some that leave. Each end is in the ledger."""

import asyncio
import errno
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from loadtest.chaos.catalogue import Request
from loadtest.chaos.ledger import DEADLINE, REFUSED, Ending, Ledger, judge
from loadtest.chaos.reply import EventReader, Reply, read_body
from loadtest.chaos.server import OwnServer, ServerFailed

BROKEN = (aiohttp.ClientError, OSError)
PAUSE_S = 0.25  # after nobody listened
MAX_PAUSE_S = 2.0  # however long Retry-After is: the load has to stay
LEAVE_WITHIN_S = 0.5
UNDISTURBED_CLIENTS = 8
POLL_S = 0.1
START_TIMEOUT_S = 180.0


@dataclass(slots=True)
class Clients:
    """All requests of a run go through `send`. `answers` are the undisturbed ones, by the name of the request."""

    http: aiohttp.ClientSession
    server: OwnServer
    ledger: Ledger
    deadline_s: float
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopping: bool = False
    comments: int = 0

    async def send(self, request: Request, kind: str | None = None) -> tuple[Ending, Reply]:
        """Send a request and enter how it ended, under `kind` instead of the request's own."""
        down, number = self.server.down, self.ledger.begin(kind or request.kind, request.name, time.monotonic())
        reply = await ask(self.http, self.server.url, request, self.deadline_s)
        ending = judge(reply, self.answers.get(request.name), down or self.server.down)
        self.ledger.end(number, time.monotonic(), ending)
        self.comments += reply.comments
        return ending, reply

    async def learn(self, requests: Sequence[Request]) -> None:
        """Ask each request once while nothing disturbs, and keep the answers. Raises `Undisturbed` if one is not answered."""
        waiting = iter(requests)

        async def client() -> None:
            for request in waiting:
                reply = await ask(self.http, self.server.url, request, self.deadline_s)
                ending = judge(reply, None, down=False)
                if ending.outcome != "answered":
                    raise Undisturbed(
                        f"request {request.name} ({request.kind}) was {ending.outcome} before anything was disturbed: {ending.why}"
                    )
                self.answers[request.name] = reply.answer

        async with asyncio.TaskGroup() as group:
            for _ in range(UNDISTURBED_CLIENTS):
                group.create_task(client())

    async def repeat(self, requests: Sequence[Request]) -> None:
        """A steady client: one request after the other, until the run stops. Refused, it waits as it was told."""
        index = 0
        while not self.stopping:
            ending, reply = await self.send(requests[index % len(requests)])
            index += 1
            if ending.outcome != "answered":
                await asyncio.sleep(pause_s(reply))

    async def burst(self, requests: Sequence[Request]) -> None:
        await asyncio.gather(*(self.send(request, "burst") for request in requests))

    async def leave(self, requests: Sequence[Request], rng: random.Random) -> None:
        """Each request is sent by a client that goes away after a moment: while it waits, while it is read, or in mid-answer."""
        await asyncio.gather(*(self._leave_one(request, rng.uniform(0, LEAVE_WITHIN_S)) for request in requests))

    async def _leave_one(self, request: Request, after_s: float) -> None:
        with suppress(TimeoutError, *BROKEN):
            async with asyncio.timeout(after_s), self.http.post(self.server.url + request.path, json=request.body) as response:
                await response.read()
        self.ledger.left += 1


class Undisturbed(Exception):
    """The undisturbed run failed, so there is nothing to compare with."""


def pause_s(reply: Reply) -> float:
    told = reply.retry_after
    return min(float(told), MAX_PAUSE_S) if told is not None and told.isdigit() else PAUSE_S


async def ask(http: aiohttp.ClientSession, url: str, request: Request, deadline_s: float) -> Reply:
    """Send a request and read its response to the end, at most until the deadline. Raises nothing: what went wrong is in the reply."""
    reply = Reply()
    try:
        async with asyncio.timeout(deadline_s), http.post(url + request.path, json=request.body) as response:
            reply.status, reply.retry_after = response.status, response.headers.get("Retry-After")
            await _read(response, reply)
    except TimeoutError:
        reply.broken = DEADLINE
    except BROKEN as error:
        reply.broken = REFUSED if _nobody_listens(error) else type(error).__name__
    return reply


async def _read(response: aiohttp.ClientResponse, reply: Reply) -> None:
    if response.content_type != "text/event-stream":
        read_body(reply, await response.read())
        return
    reader = EventReader(reply)
    async for chunk in response.content.iter_any():
        reader.feed(chunk)
    reader.close()


def _nobody_listens(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED


async def status_of(http: aiohttp.ClientSession, url: str, timeout_s: float = 2.0) -> int:
    """The status of a GET; 0 if there was no answer in time."""
    try:
        async with asyncio.timeout(timeout_s), http.get(url) as response:
            return response.status
    except (TimeoutError, *BROKEN):
        return 0


async def wait_ready(http: aiohttp.ClientSession, server: OwnServer, limit_s: float = START_TIMEOUT_S) -> None:
    """Wait until /ready says so. Raises `ServerFailed`."""
    end = time.monotonic() + limit_s
    while await status_of(http, f"{server.url}/ready") != 200:
        server.check_running()
        if time.monotonic() > end:
            raise ServerFailed(f"the server was not ready within {limit_s:.0f} s; its log: {server.log}")
        await asyncio.sleep(POLL_S)
    server.down = False


async def get(http: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
    async with http.get(url) as response:
        content: Mapping[str, Any] = await response.json()
        return content
