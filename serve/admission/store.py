"""Counts what each client used in the last minute: in memory, or in Redis for several servers.

While Redis cannot be reached each server counts by itself, with the same limits. Knows no HTTP.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from limits.aio.storage import MemoryStorage, RedisStorage
from limits.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")
PERIOD_S = 60
RETRY_S = 5.0  # how often a Redis that failed is asked again
REDIS_TIMEOUT_S = 0.25
UNBOUNDED = 2**53  # counts are doubles in Redis' scripts
OUTAGES = (StorageError, OSError)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window: what was used in this period of `PERIOD_S`, and what still counts of the period before."""

    previous: int
    previous_s: float  # until nothing of `previous` counts any more; it fades evenly
    current: int
    current_s: float  # until this period is the one before, plus `PERIOD_S`

    @property
    def used(self) -> int:
        return int(self.previous * self.previous_s / PERIOD_S) + self.current

    @property
    def reset_s(self) -> float:
        """Seconds until nothing counts any more."""
        return self.current_s if self.current > 0 else self.previous_s if self.previous > 0 else 0.0

    def wait_s(self, cost: int, limit: int) -> float:
        """Seconds after which `cost` fits under `limit`, if nothing else is used meanwhile. Parts of one do not count."""
        if self.used + cost <= limit:
            return 0.0
        if self.current + cost <= limit:
            return max(self.previous_s - (limit - self.current - cost + 1) * PERIOD_S / self.previous, 0.0)
        until_next = max(self.current_s - PERIOD_S, 0.0)
        return until_next + max(PERIOD_S - (limit - cost + 1) * PERIOD_S / self.current, 0.0)


class Store:
    """Sliding windows of a minute by key. `uri` is `memory://` or that of a Redis server."""

    def __init__(self, uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._local = MemoryStorage()
        self._shared = None if uri == "memory://" else _redis(uri)
        self._clock = clock
        self._retry_at: float | None = None  # when Redis is asked again; None while it answers

    async def take(self, key: str, cost: int, limit: int) -> bool:
        """Use `cost`, unless that would exceed `limit`."""
        return await self._ask(lambda storage: storage.acquire_sliding_window_entry(key, limit, PERIOD_S, cost))

    async def add(self, key: str, cost: int) -> None:
        """Use `cost` whatever the limit; give back what was taken, if it is negative."""
        await self.take(key, cost, UNBOUNDED)

    async def window(self, key: str) -> Window:
        return Window(*await self._ask(lambda storage: storage.get_sliding_window(key, PERIOD_S)))

    async def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        if self._shared is None or (self._retry_at is not None and self._clock() < self._retry_at):
            return await question(self._local)
        try:
            answer = await question(self._shared)
        except OUTAGES as error:
            self._note_outage(error)
            return await question(self._local)
        if self._retry_at is not None:
            self._retry_at = None
            log.warning("Redis answers again: limits hold across servers")
        return answer

    def _note_outage(self, error: BaseException) -> None:
        if self._retry_at is None:
            log.warning("Redis does not answer (%s): until it does, limits hold for this server alone", type(error).__name__)
        self._retry_at = self._clock() + RETRY_S


def _redis(uri: str) -> RedisStorage:
    from redis.asyncio.retry import Retry  # only servers that share their counts need it
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {
        "socket_timeout": REDIS_TIMEOUT_S,
        "socket_connect_timeout": REDIS_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1),  # once: a connection of the pool may be one that a restarted Redis closed
    }
    return RedisStorage(f"async+{uri}", wrap_exceptions=True, implementation="redispy", key_prefix="litmus", **options)
