"""The requests that have no slot yet, in the order in which slots are given to them. Policy from lengths and a clock; no torch."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.engine.cache import SlotCache
from app.engine.notices import Waiting
from app.engine.request import Generate
from app.engine.slot import Slot
from app.engine.textqueue import AGE_S

RECENT_RELEASES = 16  # releases of slots from which the expected wait is estimated


@dataclass(slots=True)
class WaitingRequest:
    job: Generate
    arrived_s: float
    arrival: int  # serial number
    digests: list[bytes] = field(default_factory=list)  # of the full pages of its tokens, as far as they were looked for

    def rank(self, now_s: float, is_continuing: bool) -> tuple[float, int]:
        """The smallest rank goes first."""
        priority_class = 0 if self.job.sampled else 2 if self.job.tier == "flex" else 0 if is_continuing else 1
        return priority_class - (now_s - self.arrived_s) / AGE_S, self.arrival


class RequestQueue:
    def __init__(self, cache: SlotCache, clock: Callable[[], float]) -> None:
        self.requests: list[WaitingRequest] = []
        self._cache = cache
        self._clock = clock
        self._arrivals = 0
        self._release_times_s: deque[float] = deque(maxlen=RECENT_RELEASES)

    def add(self, job: Generate) -> None:
        self._arrivals += 1
        self.requests.append(WaitingRequest(job, self._clock(), self._arrivals))

    def add_back(self, slot: Slot) -> None:
        """The request of a slot that loses its pages: it keeps its age, and what was sampled so far is its prompt's end."""
        self.requests.append(WaitingRequest(slot.rest, slot.arrived_s, slot.arrival))

    def cancel(self, id: str) -> bool:
        """Returns whether the request was found."""
        matches = [waiting for waiting in self.requests if waiting.job.id == id]
        for waiting in matches:
            self.requests.remove(waiting)
        return bool(matches)

    def ranked(self) -> list[WaitingRequest]:
        """The next one first."""
        now_s = self._clock()
        return sorted(self.requests, key=lambda waiting: waiting.rank(now_s, self._is_continuing(waiting)))

    def slot_released(self) -> None:
        """Note it, for the expected wait."""
        self._release_times_s.append(self._clock())

    def forget_releases(self) -> None:
        """Those before an idle time say nothing about the wait after it."""
        self._release_times_s.clear()

    def report(self) -> list[Waiting]:
        """The next one first, each with the wait that recent releases suggest."""
        times_s = self._release_times_s
        interval_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else None
        return [
            Waiting(waiting.job.id, position, None if interval_s is None else round(position * interval_s, 1))
            for position, waiting in enumerate(self.ranked(), 1)
        ]

    def _is_continuing(self, waiting: WaitingRequest) -> bool:
        """Whether at least half of the prompt is in the cache, as of a conversation that goes on."""
        return 2 * self._cache.find(waiting.job, waiting.digests).tokens >= len(waiting.job.prompt)
