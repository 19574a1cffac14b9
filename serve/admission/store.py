"""Counts what each client used in the last minute: in memory, or in Redis for several servers.

While Redis cannot be reached each server counts by itself, with the same limits. Knows no HTTP.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from limits.aio.storage import MemoryStorage
from limits.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")
PERIOD_S = 60
RETRY_S = 5.0  # how often a Redis that failed is asked again
UNBOUNDED = 2**53  # counts are doubles in Redis' scripts
MAX_DEBTS = 10_000  # kept in memory before those that are paid are looked for
OUTAGES = (StorageError, OSError)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window: what was used in this period of `PERIOD_S`, and what still counts of the period before."""

    previous: int
    previous_s: float  # until nothing of `previous` counts any more; it fades evenly
    current: int
    current_s: float  # until this period is the one before, plus `PERIOD_S`
    owed_s: float = 0.0  # until what was used beyond the limit is paid, at the limit's pace; nothing has room before

    @property
    def used(self) -> int:
        """Without what is owed."""
        return int(self.previous * self.previous_s / PERIOD_S) + self.current

    @property
    def reset_s(self) -> float:
        """Seconds until nothing counts any more."""
        return max(self.owed_s, self.current_s if self.current > 0 else self.previous_s if self.previous > 0 else 0.0)

    def wait_s(self, cost: int, limit: int) -> float:
        """Seconds after which `cost` fits under `limit`, if nothing else is used meanwhile. Parts of one do not count."""
        return max(self.owed_s, self._room_s(cost, limit))

    def _room_s(self, cost: int, limit: int) -> float:
        if self.used + cost <= limit:
            return 0.0
        if self.current + cost <= limit:
            return max(self.previous_s - (limit - self.current - cost + 1) * PERIOD_S / self.previous, 0.0)
        until_next = max(self.current_s - PERIOD_S, 0.0)
        return until_next + max(PERIOD_S - (limit - cost + 1) * PERIOD_S / self.current, 0.0)


class Counts(Protocol):
    """Where it is counted."""

    async def take(self, key: str, cost: int, limit: int) -> bool:
        """Use `cost`, which may be negative, unless that would exceed `limit`."""

    async def owe(self, key: str, seconds: float) -> None:
        """Lengthen the time for which nothing has room."""

    async def owed_s(self, key: str) -> float: ...

    async def window(self, key: str) -> Window: ...


class LocalCounts:
    """In this process."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._paid_at: dict[str, float] = {}  # by key, on the clock of `time.monotonic`

    async def take(self, key: str, cost: int, limit: int) -> bool:
        return await self._storage.acquire_sliding_window_entry(key, limit, PERIOD_S, cost)

    async def owe(self, key: str, seconds: float) -> None:
        now = time.monotonic()
        if len(self._paid_at) >= MAX_DEBTS:
            self._paid_at = {each: at for each, at in self._paid_at.items() if at > now}
        self._paid_at[key] = max(self._paid_at.get(key, now), now) + seconds

    async def owed_s(self, key: str) -> float:
        return max(self._paid_at[key] - time.monotonic(), 0.0) if key in self._paid_at else 0.0

    async def window(self, key: str) -> Window:
        return Window(*await self._storage.get_sliding_window(key, PERIOD_S), await self.owed_s(key))


class Store:
    """Sliding windows of a minute by key. `uri` is `memory://` or that of a Redis server. `tell` hears where Redis is, and whether it
    answers. Raises `SetupError` for a Redis that can never be used.
    """

    def __init__(
        self, uri: str, clock: Callable[[], float] = time.monotonic, tell: Callable[[str, bool], None] = lambda place, answers: None
    ) -> None:
        self._local = LocalCounts()
        self._clock, self._tell = clock, tell
        self._retry_at: float | None = None  # when Redis is asked again; None while it answers
        self._shared: Counts | None = None
        self._place = ""
        if uri != "memory://":
            self._connect(uri)

    def _connect(self, uri: str) -> None:
        from serve.admission.redis import RedisCounts, problem_of  # only servers that share their counts need it

        shared = RedisCounts(uri)
        self._shared, self._place = shared, shared.place
        self._tell(self._place, True)
        problem = problem_of(uri)
        if problem is not None:
            self._note_outage(problem)

    async def take(self, key: str, cost: int, limit: int) -> Counts | None:
        """Use `cost`, unless that would exceed `limit`, or something is owed: then None. Returns where it was counted."""

        async def question(counts: Counts) -> Counts | None:
            return counts if await counts.owed_s(key) == 0 and await counts.take(key, cost, limit) else None

        return await self._ask(question)

    async def charge(self, key: str, cost: int, limit: int) -> None:
        """Use `cost` whatever the limit: what exceeds it is owed, and paid at the limit's pace."""

        async def question(counts: Counts) -> None:
            window = await counts.window(key)
            fits = min(cost, max(limit - window.used, 0))
            if fits:
                await counts.take(key, fits, UNBOUNDED)
            if cost > fits:
                await counts.owe(key, (cost - fits) * PERIOD_S / limit)

        await self._ask(question)

    async def give_back(self, key: str, cost: int, counts: Counts) -> None:
        """Undo a `take` where it was counted: elsewhere it would be a credit. Nothing is given back to a Redis that does not answer."""
        if counts is self._shared:
            await self._ask(lambda asked: asked.take(key, -cost, UNBOUNDED) if asked is counts else _nothing())
        else:
            await counts.take(key, -cost, UNBOUNDED)

    async def window(self, key: str) -> Window:
        return await self._ask(lambda counts: counts.window(key))

    async def _ask(self, question: Callable[[Counts], Awaitable[T]]) -> T:
        if self._shared is None or (self._retry_at is not None and self._clock() < self._retry_at):
            return await question(self._local)
        try:
            answer = await question(self._shared)
        except OUTAGES as error:
            self._note_outage(error)
            return await question(self._local)
        if self._retry_at is not None:
            self._retry_at = None
            self._tell(self._place, True)
            log.warning("Redis at %s answers again: limits hold across servers", self._place)
        return answer

    def _note_outage(self, error: BaseException) -> None:
        if self._retry_at is None:
            cause = type(error.storage_error if isinstance(error, StorageError) else error).__name__
            message = "Redis at %s cannot be used (%s): until it can, limits hold for this server alone (limits.storage)"
            log.warning(message, self._place, cause)
            self._tell(self._place, False)
        self._retry_at = self._clock() + RETRY_S


async def _nothing() -> bool:
    return False
