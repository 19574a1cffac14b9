"""The metrics that are looked up when Prometheus asks: what the engines hold, which replicas live, what the processes and GPUs use.

An engine in the middle of a long step does not answer in time: then its latest report stands, with its age beside it.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from app.engine.events import Report
from app.engine.facts import Facts
from app.errors import LitmusError
from app.models.revision import VERSION
from serve.observe.metrics import PREFIX
from serve.workers.fleet import Replica, Standing
from serve.workers.router import Router

OF_REPLICA = ("replica", "version")  # labels, after the model's
REPORT_WAIT_S = 1.0  # for the engines, all at once


@dataclass(frozen=True, slots=True)
class AgedReport:
    report: Report
    at_s: float  # by `time.monotonic`
    pid: int  # of the worker that sent it


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica stands: `index` is its number in its version, by which GET /slots knows it too, `number` its number among those of
    all versions of its model, those of the served one first.
    """

    replica: Replica
    index: int
    number: int
    version: Standing

    @property
    def model(self) -> str:
        return self.replica.model

    @property
    def labels(self) -> tuple[str, str, str]:
        """Model, replica and version."""
        return self.model, str(self.index), self.version


class EngineReports:
    """Asks the engines for reports and keeps the latest of each replica."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._latest: dict[int, AgedReport] = {}  # by the replica's number

    async def refresh(self) -> None:
        """Ask every engine at once, and wait at most `REPORT_WAIT_S`."""
        members = places(self._router)
        numbers = {place.replica.number for place in members}
        self._latest = {number: report for number, report in self._latest.items() if number in numbers}
        await asyncio.gather(*(self._ask(place) for place in members))

    async def _ask(self, place: Place) -> None:
        worker = place.replica.worker
        if worker is None:
            return
        with contextlib.suppress(TimeoutError, LitmusError, OSError, EOFError):  # busy, dying, or the process with its queue is gone
            report = await asyncio.wait_for(self._router.report_of(place.replica), REPORT_WAIT_S)
            self._latest[place.replica.number] = AgedReport(report, time.monotonic(), worker.pid)

    def of(self, replica: Replica) -> AgedReport | None:
        """The latest report of the replica's present worker."""
        latest = self._latest.get(replica.number)
        return latest if latest is not None and replica.worker is not None and latest.pid == replica.worker.pid else None


def places(router: Router) -> list[Place]:
    counts: dict[str, int] = {}
    found = []
    for fleet in router.fleets:
        first = counts.get(fleet.model, 0)
        counts[fleet.model] = first + len(fleet.replicas)
        found += [Place(replica, index, first + index, fleet.standing) for index, replica in enumerate(fleet.replicas)]
    return found


def engine_families(router: Router, reports: EngineReports, now_s: float) -> Iterator[Metric]:
    """What the engines hold. `now_s` is the time of the question, by `time.monotonic`."""
    running = _gauge("num_requests_running", "answers that have a slot, by the engine's latest report", *OF_REPLICA)
    waiting = _gauge("num_requests_waiting", "answers that wait for a slot", *OF_REPLICA)
    texts = _gauge("num_texts", "texts that are being scored or embedded, or wait to be", *OF_REPLICA)
    slots = _gauge("slots", "requests that decode at once", *OF_REPLICA)
    busy = _gauge("slots_busy", "slots in which a request runs; a beam search has several", *OF_REPLICA)
    usage = _gauge("kv_cache_usage_perc", "share of the KV cache that running requests use; 1 is all of it", *OF_REPLICA)
    age = _gauge(
        "engine_report_age_seconds", "age of the report behind these numbers: above 0 while the engine is too busy to answer", *OF_REPLICA
    )
    for place in places(router):
        latest, facts = reports.of(place.replica), place.replica.facts
        if latest is None or facts is None:
            continue
        report, labels = latest.report, place.labels
        held = [slot for slot in report.slots if slot.stage != "idle"]
        running.add_metric(labels, len({slot.request for slot in held}))
        waiting.add_metric(labels, len(report.waiting))
        texts.add_metric(labels, report.texts)
        slots.add_metric(labels, len(report.slots))
        busy.add_metric(labels, len(held))
        pages = report.cache.pages
        usage.add_metric(labels, pages.used / max(1, pages.used + pages.cached + pages.free))
        age.add_metric(labels, max(0.0, now_s - latest.at_s))
    yield from (running, waiting, texts, slots, busy, usage, age)


def replica_families(router: Router) -> Iterator[Metric]:
    replicas = _gauge("replicas", "replicas that the settings ask for; none of a model that was unloaded because it was idle")
    alive = _gauge("replicas_alive", "replicas that have a worker with a loaded model")
    jobs = _gauge("jobs_in_flight", "answers and texts that were admitted and have not ended")
    info = InfoMetricFamily(PREFIX + "model", "what is served", labels=["model"])
    for model in router.models:
        fleet, members = router.fleet(model), [replica for replica in router.replicas if replica.model == model]
        replicas.add_metric([model], 0 if fleet.status == "unloaded" else len(fleet.replicas))
        alive.add_metric([model], len(fleet.alive))
        jobs.add_metric([model], sum(replica.load for replica in members))
    for facts in router.loaded_facts():
        info.add_metric([facts.name], _info(facts))
    yield from (replicas, alive, jobs, info)


def process_families(router: Router) -> Iterator[Metric]:
    """CPU time and memory of every process of the server. One that has just ended has no value."""
    labels = ["process", "model", "replica", "version"]
    cpu = CounterMetricFamily(PREFIX + "process_cpu_seconds", "CPU time of a process, user and system", labels=labels)
    memory = GaugeMetricFamily(PREFIX + "process_resident_memory_bytes", "resident memory of a process", labels=labels)
    for name, place, process in processes(router):
        names = name, *(("", "", "") if place is None else place.labels)
        with contextlib.suppress(psutil.Error), process.oneshot():
            times, resident = process.cpu_times(), process.memory_info().rss
            cpu.add_metric(names, times.user + times.system)
            memory.add_metric(names, resident)
    yield from (cpu, memory)


def processes(router: Router) -> list[tuple[str, Place | None, psutil.Process]]:
    """Each by what it is: `api`, `worker` or `main`, and of a worker its place."""
    found: list[tuple[str, Place | None, psutil.Process]] = [("api", None, psutil.Process())]
    found += [("worker", place, place.replica.worker) for place in places(router) if place.replica.worker is not None]
    if not router.replicas:  # without workers, this process is the only one
        return found
    with contextlib.suppress(psutil.NoSuchProcess):
        found.append(("main", None, psutil.Process(os.getppid())))
    return found


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, meaning, labels=["model", *labels])


def _info(facts: Facts) -> dict[str, str]:
    return {"version": VERSION, "quantize": facts.quantize, "dtype": facts.dtype, "device": facts.device, "fingerprint": facts.fingerprint}
