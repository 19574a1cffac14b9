"""What the working routes share: the router, the tokenizers, thread pools for long texts, and how they wait for a result or stream it.

Does not know the wire format.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.engine.facts import Facts
from app.errors import Forbidden, InvalidRequest, NotReady
from app.schemas import MAX_TIMEOUT_S
from app.tokenizer import Tokenizer
from serve.observe.record import CLIENT_LEFT
from serve.workers.fleet import Fleet
from serve.workers.router import Router

T = TypeVar("T")
TIMEOUT_HEADER = "X-Request-Timeout"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A served model, as one request sees it from its beginning: the facts that its worker reported, its tokenizer, and the version that
    stays loaded as long as this object lives.
    """

    facts: Facts
    tokenizer: Tokenizer
    fleet: Fleet


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes need to serve a request."""

    router: Router
    tokenizers: Mapping[str, Tokenizer]  # by model name
    text_pool: ThreadPoolExecutor
    banned_users: Container[str] = frozenset()
    schema_pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "schemas"))

    def model(self, name: str | None) -> Model:
        """The model of that name, the default model for None. Raises `UnknownModel`, or `NotReady` while it is loading."""
        fleet = self.router.fleet(name)
        model = Model(self.router.facts(name), self.tokenizers[fleet.facts.name], fleet)
        fleet.pins.add(model)
        return model

    def check_user(self, user: str | None, param: str) -> None:
        """Raises `Forbidden`, naming the field, for a user that the settings or the file of bans name."""
        if user in self.banned_users:
            raise Forbidden("this user may not use this server", param=param, code="user_banned")

    async def run_in_text_pool(self, request: Request, function: Callable[..., T], *arguments: Any) -> T:
        """Run work that takes long for a long text, such as tokenizing, in a thread beside the event loop, in the request's context.

        A call still queued when the client leaves never runs.
        """
        return await _run_in(self.text_pool, request, function, *arguments)

    async def run_in_schema_pool(self, request: Request, function: Callable[..., T], *arguments: Any) -> T:
        """Like `run_in_text_pool`, for checking schemas, which takes longest: a hard schema delays only requests with schemas."""
        return await _run_in(self.schema_pool, request, function, *arguments)


async def _run_in(pool: ThreadPoolExecutor, request: Request, function: Callable[..., T], *arguments: Any) -> T:
    run = partial(copy_context().run, function, *arguments)
    return await cancel_on_disconnect(request, asyncio.get_running_loop().run_in_executor(pool, run))


class EventStream(StreamingResponse):
    """Streams server-sent events, then closes the jobs' context: also when the client left, or never read a byte."""

    def __init__(self, lines: AsyncIterator[str | bytes], jobs_context: AbstractAsyncContextManager[Any]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._jobs_context = jobs_context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._jobs_context.__aexit__(None, None, None)


def timeout_of(request: Request, timeout_s: float | None = None) -> float | None:
    """The deadline in seconds that a request names: the field `timeout_s` of its body, else the header. Raises `InvalidRequest`."""
    header = request.headers.get(TIMEOUT_HEADER)
    if timeout_s is not None or header is None:
        return timeout_s
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"the header {TIMEOUT_HEADER} must be a number of seconds above 0 and up to {MAX_TIMEOUT_S}", param=TIMEOUT_HEADER
        )
    return seconds


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work` and return its result. If the client disconnects first, cancel it and raise `NotReady`."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise NotReady("the client disconnected before its answer was complete", code=CLIENT_LEFT)
    finally:
        disconnected.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
