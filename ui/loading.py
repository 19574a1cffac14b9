"""Waits for a server that is still loading its model, and says in words how far it is. Knows no Gradio and no HTML."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from app.schemas import Readiness
from app.schemas.state import LoadProgress
from ui.client import Chunk, Client, RequestFields, ServerError

CODE = "not_ready"  # of the error
POLL_S = 1.0
ROUTE = re.compile(r"; GET /\S+ [^.;]*")  # what the server tells programs
Result = TypeVar("Result")


async def answer(client: Client, body: RequestFields) -> AsyncGenerator[Chunk, None]:
    """The chunks of a chat answer. While the model is loading, chunks that say so; then the request is sent again, unless the answer has
    begun: the server would write it from the start, and perhaps otherwise.
    """
    has_begun = False
    while True:
        try:
            async with aclosing(client.chat(body)) as chunks:
                async for chunk in chunks:
                    has_begun = has_begun or bool(chunk.text or chunk.thought)
                    yield chunk
            return
        except ServerError as error:
            if has_begun:
                raise
            words = await words_of(client, error)
        yield Chunk(loading=f"{words} Your question is sent when it is ready.")
        await asyncio.sleep(POLL_S)


async def ask(client: Client, call: Callable[[], Awaitable[Result]], say: Callable[[str], None] = lambda words: None) -> Result:
    """The result of a call, which is made again until the model is loaded. `say` gets the words meanwhile, and blank ones at the end."""
    while True:
        try:
            result = await call()
        except ServerError as error:
            say(await words_of(client, error))
        else:
            say("")
            return result
        await asyncio.sleep(POLL_S)


async def words_of(client: Client, error: ServerError) -> str:
    """What the server is loading. Raises the error, without routes in it, if that is not why it refused."""
    if error.code != CODE:
        raise error
    readiness = await client.ready()
    if readiness.status not in {"loading", "ready"}:
        raise ServerError(ROUTE.sub("", error.message), code=CODE) from error
    return sentence(readiness)


def sentence(readiness: Readiness) -> str:
    """Names the models that are not ready yet, each with how far it is."""
    names = [name for name, presence in readiness.models.items() if presence == "loading"]
    return f"The server is loading {', '.join(_name(name, readiness) for name in names) or 'its model'}."


def _name(name: str, readiness: Readiness) -> str:
    progress = (readiness.progress or {}).get(name)
    return name if progress is None else f"{name} ({_stage(progress)})"


def _stage(progress: LoadProgress) -> str:
    if not progress.total_bytes or progress.done_bytes is None:
        return progress.stage
    return f"{progress.stage}, {progress.done_bytes / progress.total_bytes:.0%} of {progress.total_bytes / 1e6:,.0f} MB"
