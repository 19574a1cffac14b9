"""Streams the answers of both sides, at once or one after the other. Knows no Gradio and no HTML."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ui import loading
from ui.chat.sampling import FormError
from ui.client import Client, ServerError
from ui.compare.side import Side

REDRAW_INTERVAL_S = 0.1


async def run(sides: Sequence[Side], client: Client, in_turn: bool) -> AsyncGenerator[None, None]:
    """Yields now and then until all sides have ended. Closing the generator closes the requests, which ends the server's work."""
    running = [_one_after_the_other(sides, client)] if in_turn else [_stream(side, client) for side in sides]
    tasks = [asyncio.create_task(each) for each in running]
    try:
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=REDRAW_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
            yield
        for task in tasks:
            task.result()  # raises what is not a problem of the answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one_after_the_other(sides: Sequence[Side], client: Client) -> None:
    for side in sides:
        await _stream(side, client)


async def _stream(side: Side, client: Client) -> None:
    side.begin(time.perf_counter())
    try:
        async with aclosing(loading.answer(client, side.settings.body(side.prompt))) as chunks:
            async for chunk in chunks:
                side.answer.add(chunk, time.perf_counter())
    except (ServerError, FormError) as error:
        side.end(time.perf_counter(), str(error))
    else:
        side.end(time.perf_counter())
