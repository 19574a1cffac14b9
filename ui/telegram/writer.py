"""Shows an answer while it grows, no more often than Telegram likes, and then sends all of it.

A frame that comes too early is left out, not queued: the next one has its text. Only one is on its way at a time, and after one that took
long (Telegram made the bot wait) the next one waits as long.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from telegram.error import Forbidden, RetryAfter, TelegramError

from ui.telegram.pieces import split
from ui.telegram.screen import Screen

REFRESH_S = 20.0  # a draft vanishes after 30 s
MAX_INTERVAL_S = 30.0
logger = logging.getLogger(__name__)


class Writer:
    """`async with` it; call `show` at will and `finish` once. `gone` is called if nobody can read the answer any more."""

    def __init__(self, screen: Screen, interval_s: float, gone: Callable[[], None]) -> None:
        self._screen, self._interval_s, self._gone = screen, interval_s, gone
        self._text = self._status = ""
        self._settled = 0  # pieces that are sent for good
        self._changed, self._closing = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._changed.set()  # the first frame says that the bot is at it
        self._task = asyncio.create_task(self._draw())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._close()

    def show(self, text: str, status: str = "") -> None:
        self._text, self._status = text, status
        self._changed.set()

    async def finish(self, text: str) -> None:
        """Sends what is not sent yet of the complete text. What `show` got must be its beginning."""
        await self._close()
        for piece in split(text)[self._settled :]:
            await self._screen.settle(piece)
            self._settled += 1

    async def _close(self) -> None:
        """Lets a frame that is on its way arrive: it must not come after the end of the answer."""
        self._closing.set()
        self._changed.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _draw(self) -> None:
        while not self._closing.is_set():
            await _wait(self._changed, REFRESH_S)
            if self._closing.is_set():
                return
            self._changed.clear()
            begin_s = time.monotonic()
            if not await self._frame():
                return
            await _wait(self._closing, max(self._interval_s, min(time.monotonic() - begin_s, MAX_INTERVAL_S)))

    async def _frame(self) -> bool:
        """Whether there is somebody to show more to."""
        try:
            pieces = split(self._text)
            for piece in pieces[self._settled : -1]:
                await self._screen.settle(piece)
                self._settled += 1
            await self._screen.frame(pieces[-1] if pieces else "", self._status)
        except Forbidden:
            self._gone()
            return False
        except RetryAfter:
            self._interval_s = min(2 * self._interval_s, MAX_INTERVAL_S)
        except TelegramError as error:
            logger.debug("a frame of an answer was not shown: %s", type(error).__name__)
        return True


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event, or so long."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
