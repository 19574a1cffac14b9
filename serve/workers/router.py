"""Between the routes and the workers: sends jobs to a replica of their model, delivers events to their requests, and sends the jobs of a
dead worker to another one.

Lives in the API process, on its event loop. LitServe's response reader calls `append` as if the router were a response queue. Knows no
wire format and no model.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import psutil

from app.engine.events import Event, Failed, Report
from app.engine.notices import Interrupted
from app.engine.request import Job
from app.errors import DeadlineExceeded, LitmusError, NotReady, WorkerDied
from app.settings import QueueSettings
from serve.observe.observer import Observer
from serve.workers.fleet import Fleet, Replica
from serve.workers.flight import Flight, JobEvents
from serve.workers.messages import AdapterRead, Beat, Ended, Events, LoadFailed, Message, Ready, Started
from serve.workers.models import Models
from serve.workers.reports import Reports

log = logging.getLogger(__name__)

MAX_DEATHS = 2  # workers that may die with the same job; it may be the cause
WORKER_DIED = "the model's process died, and no other one took this request in time; send it again"
DIED_TWICE = "the model's process died twice while it had this request, which may be the cause; it is not tried a third time"
REPORT_LOST = "the model's process died before it answered; a new one is starting, ask again in a moment"
TIMEOUTS = "timeout_s, X-Request-Timeout or the server's queue.timeout_s"


def too_late(limit_s: float | None) -> DeadlineExceeded:
    return DeadlineExceeded(f"the answer was not complete after {limit_s} s ({TIMEOUTS})")


class Router(Models):
    """Routes to all replicas of all models. `models` names the model of each replica, the default model first."""

    def __init__(self, models: Sequence[str], queue_settings: QueueSettings) -> None:
        super().__init__(models, queue_settings)
        self.observer = Observer(models)
        self.heard: Callable[[Ready | LoadFailed | Started | Ended], None] = lambda message: None  # who follows the life of workers
        self.adapted: Callable[[Ready | AdapterRead], None] = lambda message: None  # who looks after the adapters of workers
        self.installed: Callable[[Fleet], None] = lambda fleet: None  # and of the version that takes new jobs from now on
        self._flights: dict[str, Flight] = {}  # by the job's id
        self.reports = Reports()

    @property
    def in_flight(self) -> int:
        """Jobs of all models that requests still wait for."""
        return len(self._flights)

    @contextlib.asynccontextmanager
    async def open(self, jobs: list[Job], model: str | Fleet | None = None, timeout_s: float | None = None) -> AsyncIterator[JobEvents]:
        """Send jobs to a worker of the model, or of the version for which they were made, and yield their events. Leaving the block
        cancels those that have not ended; after `timeout_s`, by default that of the queue, they fail with `DeadlineExceeded`.

        Raises `NotReady` while the server shuts down, and what `Fleet.admit` raises.
        """
        if self.draining:
            raise NotReady("the server is shutting down")
        replica = (model if isinstance(model, Fleet) else self.fleet(model)).admit(jobs)
        events = JobEvents(job.id for job in jobs)
        flights = [Flight(job, events, replica) for job in jobs]
        limit_s = self.queue_settings.timeout_s if timeout_s is None else timeout_s
        deadline = None if limit_s is None else asyncio.get_running_loop().call_later(limit_s, self.fail, flights, too_late(limit_s))
        try:
            for flight in flights:
                self._flights[flight.job.id] = flight
                self.observer.admitted(flight.job, replica.model)
                replica.load += 1
                self._send(flight)
            yield events
        finally:
            if deadline is not None:
                deadline.cancel()
            for flight in flights:
                self._end(flight)

    def _send(self, flight: Flight) -> None:
        """Queue the job for its replica's worker: the whole job, or what is left of it. Without a worker it waits for one to be loaded."""
        if flight.replica.worker is None:
            flight.waits_since_s = math.inf
            return
        flight.pid = flight.replica.worker.pid
        flight.replica.send(flight.rest())

    def _end(self, flight: Flight) -> None:
        """Forget a job that its request no longer waits for."""
        if self._flights.pop(flight.job.id, None) is not None:
            self.observer.ended(flight.job.id)
            flight.replica.load -= 1
            self.cancel(flight)

    def cancel(self, flight: Flight) -> None:
        """Let the worker drop a job that it has not ended."""
        worker = flight.replica.worker
        if not flight.has_ended and worker is not None and worker.pid == flight.pid:
            with contextlib.suppress(OSError, EOFError):  # the process that holds the queue is gone, and the worker with it
                flight.replica.send(flight.job.id)

    def fail(self, flights: Sequence[Flight], error: LitmusError) -> None:
        for flight in flights:
            self.cancel(flight)
            failed = Failed(flight.job.id, error)
            if flight.deliver(failed):
                self.observer.events([failed])

    async def report(self, model: str | None = None, replica: int = 0) -> Report:
        """Ask the engine of a model's replica for its state. Does not count as a job.

        Raises `NotReady` when the worker does not answer, and `InvalidRequest` when there is no such replica.
        """
        return await self.report_of(self.fleet(model).replica(replica))

    async def report_of(self, replica: Replica) -> Report:
        """Raises `NotReady` when its worker does not answer."""
        return await self.reports.ask(replica)

    def append(self, response: Sequence[Any]) -> None:
        """Take one message of a worker."""
        message: Message = response[0]
        if isinstance(message, Ready):
            self._register_worker(message)
        elif isinstance(message, Beat):
            self._note_beat(message)
        elif isinstance(message, AdapterRead):
            self.adapted(message)
        elif isinstance(message, Started | LoadFailed | Ended):
            self.heard(message)
        else:
            self._deliver(message)

    def _deliver(self, message: Events) -> None:
        delivered: list[Event] = []
        for event in message.events:
            if isinstance(event, Report):
                self.reports.resolve(event)
                continue
            flight = self._flights.get(event.id)
            if flight is not None and flight.pid == message.pid and flight.deliver(event):
                delivered.append(event)
        self.observer.events(delivered)

    def _note_beat(self, beat: Beat) -> None:
        for replica in self.replicas:
            if replica.worker is not None and replica.worker.pid == beat.pid:
                replica.silent_rounds = 0

    def _register_worker(self, ready: Ready) -> None:
        replica = next((replica for replica in self.replicas if replica.number == ready.worker), None)
        if replica is None:  # of a version that is no longer wanted: it is being stopped
            return
        if replica.worker is not None and replica.worker.pid != ready.pid:  # `watch` did not see the previous one die
            self.workers_died([replica])
        try:
            replica.worker, replica.facts, replica.silent_rounds = psutil.Process(ready.pid), ready.facts, 0
        except psutil.NoSuchProcess:  # it died before its ready message was read; its successor sends one, too
            replica.worker = None
            return
        self.observer.worker_ready(ready.worker, replica.model)
        log.info("worker %d serves %s (%s, %s)", ready.pid, ready.facts.name, ready.facts.dtype, ready.facts.device)
        self.heard(ready)
        self.adapted(ready)  # before any job is sent to it
        fleet = self.fleet_of(replica)
        for flight in self.waiting(fleet):
            if flight.replica is replica or flight.deaths:
                self.move(flight, replica)
        self.fill(fleet)

    def fill(self, fleet: Fleet) -> None:
        """Give jobs that wait for a replica which is still loading to replicas with free slots; the others stay for that one."""
        for flight in self.waiting(fleet):
            replica = min(fleet.alive, key=lambda each: each.load, default=None)
            if replica is None or replica.load >= fleet.facts.slots:
                return
            self.move(flight, replica)

    def waiting(self, fleet: Fleet) -> list[Flight]:
        """The jobs of a version that wait for one of its workers."""
        return [flight for flight in self.unfinished(fleet) if _waits(flight)]

    def unfinished(self, fleet: Fleet) -> list[Flight]:
        """The jobs of a version that have not ended."""
        return [flight for flight in self._flights.values() if flight.replica in fleet.replicas and not flight.has_ended]

    def workers_died(self, replicas: Iterable[Replica]) -> None:
        """Send the jobs of these replicas' workers to other replicas of their models; without one, they wait for the next worker."""
        dead = [(replica, replica.worker.pid) for replica in replicas if replica.worker is not None]
        for replica, _ in dead:  # all of them, before any job moves
            replica.worker = None
            self.observer.worker_died(replica.model)
            self.reports.fail(NotReady(REPORT_LOST), replica)
        for replica, pid in dead:
            for flight in [each for each in self._flights.values() if each.replica is replica and each.pid == pid and not each.has_ended]:
                self._interrupt(flight)

    def _interrupt(self, flight: Flight) -> None:
        flight.pid, flight.waits_since_s = None, asyncio.get_running_loop().time()
        flight.deaths += 1
        if flight.deaths >= MAX_DEATHS:
            self.fail([flight], WorkerDied(DIED_TWICE))
            return
        model = flight.replica.model
        flight.events.queue.put_nowait(Interrupted(flight.job.id))
        self.observer.interrupted(model)
        alive = self.fleet_of(flight.replica).alive
        if alive:
            self.move(flight, min(alive, key=lambda other: other.load))

    def move(self, flight: Flight, replica: Replica) -> None:
        flight.replica.load -= 1
        replica.load += 1
        flight.replica = replica
        self._send(flight)

    def fail_stranded(self) -> None:
        """Fail the jobs that have waited too long for a worker, and, while the server shuts down, those for which none is started: of a
        model that was unloaded.
        """
        oldest_s = asyncio.get_running_loop().time() - self.queue_settings.resume_wait_s
        waiting = [flight for flight in self._flights.values() if _waits(flight)]
        self.fail(
            [flight for flight in waiting if flight.waits_since_s <= oldest_s or (self.draining and not flight.deaths)],
            WorkerDied(WORKER_DIED),
        )

    def install(self, fleet: Fleet) -> Fleet | None:
        """As `Models.install`; the metrics know the model from then on."""
        self.observer.add(fleet.model)
        old = super().install(fleet)
        self.installed(fleet)
        return old

    def fail_all(self, error: LitmusError) -> None:
        """End all jobs in flight and all pending reports with `error`."""
        self.fail(list(self._flights.values()), error)
        self.reports.fail(error)


def _waits(flight: Flight) -> bool:
    """Whether no worker has the job, and one is wanted."""
    return flight.pid is None and not flight.has_ended
