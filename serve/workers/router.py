"""Between the routes and the workers: finds the model, sends jobs to a replica, delivers events to their requests, notices dead workers.

Lives in the API process, on its event loop. LitServe's response reader calls `append` as if the router were a response queue. Knows no
wire format and no model.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import psutil

from app.engine.request import Delta, Event, Facts, Failed, Inspect, Job, Report, Waiting
from app.errors import LitmusError, NotReady, UnknownModel, WorkerDied
from serve.observe.observer import Observer
from serve.workers.fleet import Fleet, Replica

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.2
SIBLINGS_REFRESH_ROUNDS = 25  # watch rounds between two readings of the process table
REPORT_TIMEOUT_S = 2.0
WORKER_DIED = "the model's process died; a new one is starting, send the request again"
ENGINE_BUSY = "the engine did not answer in time: it is in the middle of a long step, ask again in a moment"


class JobEvents:
    """The events of one request's jobs. Iterating yields them until every job has ended."""

    def __init__(self, ids: Iterable[str], replica: Replica) -> None:
        self.replica = replica
        self.running = set(ids)  # ids of the jobs that have not ended
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self.running:
            event = await self.queue.get()
            if _ends_job(event):
                self.running.discard(event.id)
            yield event


def _ends_job(event: Event) -> bool:
    return event.finish is not None if isinstance(event, Delta) else not isinstance(event, Waiting)


class Router:
    """Routes to all replicas of all models. `models` names the model of each replica, the default model first."""

    def __init__(self, max_waiting: int, models: Sequence[str]) -> None:
        self.replicas = [Replica(number, model) for number, model in enumerate(models)]
        self.draining = False
        self.observer = Observer(models)
        self._fleets = {
            model: Fleet(model, [replica for replica in self.replicas if replica.model == model], max_waiting)
            for model in dict.fromkeys(models)
        }
        self._events_by_job: dict[str, JobEvents] = {}
        self._pending_reports: dict[str, tuple[Replica, asyncio.Future[Report]]] = {}

    @property
    def in_flight(self) -> int:
        """Jobs of all models that requests still wait for."""
        return len(self._events_by_job)

    @property
    def models(self) -> list[str]:
        """The names of all models, the default one first."""
        return list(self._fleets)

    @property
    def alive(self) -> dict[str, bool]:
        """For each model, whether at least one of its replicas has a worker."""
        return {model: bool(fleet.alive) for model, fleet in self._fleets.items()}

    @property
    def ready(self) -> bool:
        """Whether every model is served."""
        return all(self.alive.values()) and not self.draining

    def facts(self, model: str | None = None) -> Facts:
        """The facts of a model, of the default one for None. Raises `UnknownModel`, and `NotReady` until it has been loaded once."""
        return self._fleet(model).facts

    def loaded_facts(self) -> list[Facts]:
        """The facts of every model that has been loaded once."""
        facts = {replica.model: replica.facts for replica in self.replicas if replica.facts is not None}
        return [facts[model] for model in self._fleets if model in facts]

    def _fleet(self, model: str | None) -> Fleet:
        name = next(iter(self._fleets)) if model is None else model
        if name not in self._fleets:
            names = ", ".join(f"'{served}'" for served in self._fleets)
            raise UnknownModel(f"model '{name}' is not served here; this server has {names}", param="model")
        return self._fleets[name]

    @contextlib.asynccontextmanager
    async def open(self, jobs: list[Job], model: str | None = None) -> AsyncIterator[JobEvents]:
        """Send jobs to a worker of the model and yield their events. Leaving the block cancels the jobs that have not ended.

        Raises `NotReady` while the server shuts down, and what `Fleet.admit` raises.
        """
        if self.draining:
            raise NotReady("the server is shutting down")
        replica = self._fleet(model).admit(jobs)
        worker = replica.worker
        events = JobEvents((job.id for job in jobs), replica)
        try:
            for job in jobs:
                self._events_by_job[job.id] = events
                self.observer.admitted(job, replica.model)
                replica.load += 1
                replica.send(job)
            yield events
        finally:
            for job in jobs:
                if self._events_by_job.pop(job.id, None) is None:
                    continue
                self.observer.ended(job.id)
                replica.load -= 1
                if job.id in events.running and replica.worker is worker is not None:
                    with contextlib.suppress(OSError, EOFError):  # the process that holds the queue is gone, and the worker with it
                        replica.send(job.id)

    def check_job_count(self, count: int, model: str | None = None) -> None:
        """Raises `InvalidRequest` if one request may not have that many jobs. Cheap: call it before the jobs are made."""
        self._fleet(model).check_job_count(count)

    async def report(self, model: str | None = None, replica: int = 0) -> Report:
        """Ask the engine of a model's replica for its state. Does not count as a job.

        Raises `NotReady` when the worker does not answer, and `InvalidRequest` when there is no such replica.
        """
        target = self._fleet(model).replica(replica)
        inspect = Inspect(f"inspect-{uuid.uuid4().hex}")
        report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._pending_reports[inspect.id] = target, report
        try:
            target.send(inspect)
            return await asyncio.wait_for(report, REPORT_TIMEOUT_S)
        except TimeoutError:
            raise NotReady(ENGINE_BUSY) from None
        finally:
            del self._pending_reports[inspect.id]

    def append(self, response: list[Any]) -> None:
        """Take one item from a worker: its ready message `(pid, number of the replica, Facts)`, or the events of a step."""
        item = response[0]
        if isinstance(item, tuple):
            self._register_worker(*item)
            return
        self.observer.events(item)
        for event in item:
            if isinstance(event, Report):
                self._resolve_report(event)
                continue
            events = self._events_by_job.get(event.id)
            if events is not None:
                events.queue.put_nowait(event)

    def _register_worker(self, pid: int, number: int, facts: Facts) -> None:
        replica = self.replicas[number]
        self.fail_all(WorkerDied(WORKER_DIED), replica)  # jobs of the previous worker, if `watch` did not see it die
        try:
            replica.worker, replica.facts = psutil.Process(pid), facts
        except psutil.NoSuchProcess:  # it died before its ready message was read; its successor sends one, too
            replica.worker = None
            return
        self.observer.worker_ready(number, replica.model)
        log.info("worker %d serves %s (%s, %s)", pid, facts.name, facts.dtype, facts.device)

    def _resolve_report(self, report: Report) -> None:
        _, pending = self._pending_reports.get(report.id, (None, None))
        if pending is not None and not pending.done():
            pending.set_result(report)

    async def watch(self) -> None:
        """Run as long as the server: fail the jobs of a worker that died, and end all processes when the main process is gone."""
        parent = psutil.Process(os.getppid())
        siblings = _children(parent)
        for round_number in itertools.count(1):
            await asyncio.sleep(WATCH_INTERVAL_S)
            for replica in self.replicas:
                if replica.worker is not None and _is_dead(replica.worker):
                    level = logging.DEBUG if self.draining else logging.ERROR
                    log.log(level, "worker %d of %s died with %d jobs in flight", replica.worker.pid, replica.model, replica.load)
                    replica.worker = None
                    self.observer.worker_died(replica.model)
                    self.fail_all(WorkerDied(WORKER_DIED), replica)
            if not self.draining and os.getppid() != parent.pid:
                log.error("the main process is gone; ending all processes of this server")
                for sibling in siblings:  # includes this process, and the one that holds the queues and a copy of the listening socket
                    with contextlib.suppress(psutil.NoSuchProcess):
                        sibling.kill()
            if round_number % SIBLINGS_REFRESH_ROUNDS == 0:  # rarely, as it reads the whole of /proc
                siblings = _children(parent) or siblings

    def fail_all(self, error: LitmusError, replica: Replica | None = None) -> None:
        """End all jobs in flight and all pending reports, or those of one replica, with `error`."""
        for id, events in self._events_by_job.items():
            if replica in {None, events.replica}:
                failed = Failed(id, error)
                self.observer.events([failed])
                events.queue.put_nowait(failed)
        for target, pending in self._pending_reports.values():
            if replica in {None, target} and not pending.done():
                pending.set_exception(error)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children()
    return []
