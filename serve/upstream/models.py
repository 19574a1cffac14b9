"""All models that upstreams answer for, by name: what is in flight to them, what they can do, and the watch over them."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.errors import LitmusError
from app.settings import ModelSettings, QueueSettings, Settings
from serve.observe.metrics import PREFIX
from serve.observe.observer import Observer
from serve.upstream.pool import Pool
from serve.upstream.upstream import Upstream

if TYPE_CHECKING:
    from serve.upstream.errand import Errand

LABELS = ["model", "upstream"]


class Upstreams:
    def __init__(self, settings: Settings, observer: Observer) -> None:
        self.observer, self.queue_settings = observer, settings.queue
        self.pools = {name: _pool(name, group, settings.queue) for name, group in _groups(settings.served).items()}
        self._errands: set[Errand] = set()
        registry = observer.metrics.registry
        self.requests = Counter(
            PREFIX + "upstream_requests",
            "requests sent to an upstream, by what it did: answered, refused, failed",
            [*LABELS, "outcome"],
            registry=registry,
        )
        if self.pools:
            registry.register(self)

    @property
    def all(self) -> list[Upstream]:
        return [upstream for pool in self.pools.values() for upstream in pool.upstreams]

    @property
    def in_flight(self) -> int:
        return sum(pool.in_flight for pool in self.pools.values())

    @property
    def capacity(self) -> int:
        return sum(pool.capacity for pool in self.pools.values())

    @property
    def alive(self) -> dict[str, bool]:
        """For each model, whether one of its upstreams answers."""
        return {name: bool(pool.alive) for name, pool in self.pools.items()}

    def pool(self, name: object) -> Pool | None:
        """None for a model that no upstream has."""
        return self.pools.get(name) if isinstance(name, str) else None

    @contextmanager
    def under_way(self, errand: "Errand") -> Iterator[None]:
        self._errands.add(errand)
        try:
            yield
        finally:
            self._errands.discard(errand)

    def fail_all(self, error: LitmusError) -> None:
        """End all requests in flight with this error."""
        for errand in list(self._errands):
            errand.end(error)

    async def watch(self) -> None:
        """Run as long as the server."""
        await asyncio.gather(*(upstream.watch() for upstream in self.all))

    def collect(self) -> Iterator[Metric]:
        """What is looked up when Prometheus asks."""
        alive = GaugeMetricFamily(PREFIX + "upstream_alive", "1 while the upstream answers, else 0", labels=LABELS)
        running = GaugeMetricFamily(PREFIX + "upstream_requests_running", "requests that the upstream has", labels=LABELS)
        deaths = CounterMetricFamily(PREFIX + "upstream_deaths", "times that the upstream was taken out", labels=LABELS)
        waiting = GaugeMetricFamily(PREFIX + "upstream_requests_waiting", "requests that wait for an upstream", labels=["model"])
        for name, pool in self.pools.items():
            for upstream in pool.upstreams:
                labels = [name, upstream.url]
                alive.add_metric(labels, upstream.alive)
                running.add_metric(labels, upstream.load)
                deaths.add_metric(labels, upstream.deaths)
            waiting.add_metric([name], pool.waiting)
        yield from (alive, running, deaths, waiting)


def _groups(served: Mapping[str, ModelSettings]) -> dict[str, list[ModelSettings]]:
    groups: dict[str, list[ModelSettings]] = {}
    for model in served.values():
        if model.upstream is not None:
            groups.setdefault(model.served_name, []).append(model)
    return groups


def _pool(name: str, group: Sequence[ModelSettings], queue_settings: QueueSettings) -> Pool:
    return Pool(name, [Upstream(name, settings) for settings in group], queue_settings)
