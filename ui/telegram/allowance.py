"""How many messages of a user are answered in a minute, counted by the library `limits`, in memory. Knows no Telegram."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a message is answered. If not, `refusal` is a sentence for the user: once a minute, so that a flood has no echo."""

    is_allowed: bool
    refusal: str | None = None


class Allowance:
    def __init__(self, per_minute: int, clock: Callable[[], float] = time.time) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._messages, self._notices = RateLimitItemPerMinute(per_minute), RateLimitItemPerMinute(1)
        self._clock = clock

    async def take(self, user: int) -> Verdict:
        if await self._limiter.hit(self._messages, "messages", str(user)):
            return Verdict(True)
        if not await self._limiter.hit(self._notices, "notices", str(user)):
            return Verdict(False)
        until_s = (await self._limiter.get_window_stats(self._messages, "messages", str(user))).reset_time
        wait_s = max(math.ceil(until_s - self._clock()), 1)
        return Verdict(
            False, f"That was a lot at once: I answer {self._messages.amount} messages a minute. Please try again in {wait_s} seconds."
        )
