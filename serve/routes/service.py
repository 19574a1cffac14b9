"""What every working route works with: the router, each model's tokenizer, a pool for long texts; and how it waits and streams.

Knows no wire format.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.engine.request import Facts
from app.errors import Forbidden, NotReady
from app.tokenizer import Tokenizer
from serve.workers.router import Router, Ticket

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """A served model: what its worker said of it, and its tokenizer."""

    facts: Facts
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    router: Router
    tokenizers: Mapping[str, Tokenizer]  # by the models' names
    pool: ThreadPoolExecutor
    banned: frozenset[str] = frozenset()
    forms: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "forms"))

    def model(self, name: str | None) -> Model:
        """The default one where no name is given. Raises `UnknownModel`, or `NotReady` while it is loading."""
        facts = self.router.served(name)
        return Model(facts, self.tokenizers[facts.name])

    def check_user(self, user: str | None) -> None:
        """Raises `Forbidden` for one whom the settings ban."""
        if user in self.banned:
            raise Forbidden("this user may not use this server", param="user", code="user_banned")

    async def work(self, request: Request, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long for a long text beside the event loop, and not on the pool that LitServe's reader needs; not at all for a
        client that left before its turn.
        """
        return await unless_gone(request, asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments))

    async def compile(self, request: Request, function: Callable[..., T], *arguments: Any) -> T:
        """The same for schemas, which take longest: whoever sends a hard one keeps only others with one waiting."""
        return await unless_gone(request, asyncio.get_running_loop().run_in_executor(self.forms, function, *arguments))


class EventStream(StreamingResponse):
    """Server-sent events of an open ticket, which is closed whether the answer was whole, the client left or it never listened."""

    def __init__(self, lines: AsyncIterator[str], opened: AbstractAsyncContextManager[Ticket]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._opened.__aexit__(None, None, None)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise NotReady("the client left before its answer was whole")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
