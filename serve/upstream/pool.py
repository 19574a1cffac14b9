"""The upstreams of one model: which of them gets a request, how many it may have, and who waits. Knows no HTTP."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.errors import LitmusError, NotReady, QueueFull
from app.settings import QueueSettings
from serve.upstream.upstream import Upstream
from serve.workers.affinity import Affinity

SHARE = 4  # a conversation leaves its upstream where that has a quarter of its bound more requests than the least loaded one
Refusal = Callable[[Upstream], LitmusError | None]  # why an upstream cannot do what a request asks for


@dataclass(slots=True, eq=False)
class Place:
    """A request on its way to an upstream. `words` are the beginning of its conversation; `tried` failed with it."""

    words: Sequence[int]
    refusal: Refusal
    tried: set[Upstream] = field(default_factory=set)
    upstream: Upstream | None = None
    called: asyncio.Future[None] | None = None  # done when it has an upstream, or will never have one


class Pool:
    def __init__(self, name: str, upstreams: Sequence[Upstream], queue_settings: QueueSettings) -> None:
        self.name, self.upstreams = name, upstreams
        self.queue_settings = queue_settings
        self.places: set[Place] = set()  # all that have entered and not left
        self._waiting: deque[Place] = deque()
        self._affinity = Affinity()
        for upstream in upstreams:
            upstream.changed = self._changed

    @property
    def alive(self) -> list[Upstream]:
        return [upstream for upstream in self.upstreams if upstream.alive]

    @property
    def in_flight(self) -> int:
        return len(self.places)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def capacity(self) -> int:
        """Requests that may be in flight."""
        return sum(upstream.limit for upstream in self.upstreams) + self.queue_settings.max_waiting

    @asynccontextmanager
    async def enter(self, words: Sequence[int], refusal: Refusal) -> AsyncIterator[Place]:
        """Hold a place while the context is open; `seat` gives it an upstream.

        Raises `QueueFull`, `NotReady`, and what `refusal` says where no upstream can do what is asked.
        """
        place = Place(words, refusal)
        self._check(place)
        if len(self._waiting) >= self.queue_settings.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests wait for the upstreams of '{self.name}', as many as may (queue.max_waiting); "
                "try again in a moment"
            )
        self.places.add(place)
        try:
            yield place
        finally:
            self.places.discard(place)
            self._leave(place)

    def _able(self, place: Place) -> list[Upstream]:
        return [upstream for upstream in self.alive if upstream not in place.tried and place.refusal(upstream) is None]

    def _check(self, place: Place) -> None:
        """Raises the error of a place that no upstream can take, now or when one has room."""
        alive = self.alive
        if not alive:
            raise NotReady(f"no server that answers for '{self.name}' can be reached at the moment; GET /ready says when one can")
        if not self._able(place):
            raise next(filter(None, map(place.refusal, alive)), NotReady(f"no other server that answers for '{self.name}' can be reached"))

    def has_room(self, place: Place) -> bool:
        """Give the place an upstream now, or let it wait: then its turn is when `wait` returns."""
        if place.upstream is None and not self._waiting:
            self._seat(place)
        if place.upstream is None and place not in self._waiting:
            place.called = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
        return place.upstream is not None

    def position(self, place: Place) -> int:
        """1 is next."""
        return self._waiting.index(place) + 1 if place in self._waiting else 1

    async def seat(self, place: Place) -> Upstream:
        """The upstream for the place, when it has room. Raises what `enter` raises where none is left."""
        self._check(place)
        if not self.has_room(place) and place.called is not None:
            await place.called
        if place.upstream is None:
            self._check(place)
            raise NotReady(f"'{self.name}' has no server with room")
        return place.upstream

    def failed(self, place: Place) -> bool:
        """The place's upstream failed before it answered. Whether another one may take the request."""
        if place.upstream is not None:
            place.tried.add(place.upstream)
        self._leave(place)
        return bool(self._able(place))

    def _leave(self, place: Place) -> None:
        upstream, place.upstream = place.upstream, None
        if place in self._waiting:
            self._waiting.remove(place)
        if upstream is not None:
            upstream.load -= 1
            self._changed()

    def _seat(self, place: Place) -> None:
        with_room = [upstream for upstream in self._able(place) if upstream.load < upstream.limit]
        if with_room:
            place.upstream = self._choose(with_room, place.words)
            place.upstream.load += 1

    def _choose(self, with_room: Sequence[Upstream], words: Sequence[int]) -> Upstream:
        """The upstream that has read the conversation, unless it is much fuller than the least loaded one; else that one."""
        least_loaded = min(with_room, key=lambda upstream: upstream.load)
        if not words or len(self.upstreams) == 1:
            return least_loaded
        known = self._affinity.find(words)
        chosen = next((upstream for upstream in with_room if self.upstreams.index(upstream) == known), least_loaded)
        if chosen.load > least_loaded.load + chosen.limit // SHARE:
            chosen = least_loaded
        self._affinity.remember(words, self.upstreams.index(chosen))
        return chosen

    def _changed(self) -> None:
        """An upstream came, went or has room: seat who waits, in their order, and call those whom nobody can take any more."""
        for place in list(self._waiting):
            self._seat(place)
            if place.upstream is None and self._able(place):
                continue
            self._waiting.remove(place)
            if place.called is not None and not place.called.done():
                place.called.set_result(None)
