"""Lets requests that came together begin one after the other, so that the event loop is never long without answering the others."""

import asyncio
from collections import deque

AT_ONCE = 4  # in one turn of the event loop; each takes it for a millisecond or two, to parse and validate its body


class Turns:
    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return in a turn of the event loop in which at most `AT_ONCE` others return, in the order of arrival."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_soon(self._release)
        await turn

    def _release(self) -> None:
        released = 0
        while self._waiting and released < AT_ONCE:
            turn = self._waiting.popleft()
            if not turn.done():  # nobody waits any more for a cancelled one
                turn.set_result(None)
                released += 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._release)
