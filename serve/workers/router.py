"""Between the routes and the workers: finds the model, sends jobs to a replica, delivers events to their requests, and sends the jobs of a
dead worker to another one.

Lives in the API process, on its event loop. LitServe's response reader calls `append` as if the router were a response queue. Knows no
wire format and no model.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil

from app.engine.request import Event, Facts, Failed, Interrupted, Job, Report
from app.errors import DeadlineExceeded, LitmusError, NotReady, UnknownModel, WorkerDied
from app.schemas.state import ModelStatus
from app.setting_groups import QueueSettings
from serve.observe.observer import Observer
from serve.workers.fleet import Fleet, Replica
from serve.workers.flight import Flight, JobEvents
from serve.workers.messages import AdapterRead, Beat, Ended, Events, LoadFailed, Message, Ready, Started
from serve.workers.reports import Reports

log = logging.getLogger(__name__)

MAX_DEATHS = 2  # workers that may die with the same job; it may be the cause
WORKER_DIED = "the model's process died, and no other one took this request in time; send it again"
DIED_TWICE = "the model's process died twice while it had this request, which may be the cause; it is not tried a third time"
REPORT_LOST = "the model's process died before it answered; a new one is starting, ask again in a moment"
TIMEOUTS = "timeout_s, X-Request-Timeout or the server's queue.timeout_s"


class Router:
    """Routes to all replicas of all models. `models` names the model of each replica, the default model first. Of each model one version
    takes new jobs; beside it, another one may be loading or finishing what it has.
    """

    def __init__(self, models: Sequence[str], queue_settings: QueueSettings) -> None:
        self.replicas = [Replica(number, model) for number, model in enumerate(models)]
        self.queue_settings = queue_settings
        self.draining = False
        self.observer = Observer(models)
        self.default = next(iter(models), "")
        self.absent: dict[str, LitmusError] = {}  # what is told of a model that is not served, but could be
        self.heard: Callable[[Ready | LoadFailed | Started | Ended], None] = lambda message: None  # who follows the life of workers
        self.adapters: dict[str, str] = {}  # names of adapters, each with that of its base
        self.adapted: Callable[[Ready | AdapterRead], None] = lambda message: None  # who looks after the adapters of workers
        self._beside: list[Fleet] = []  # versions that get no new jobs
        self._fleets = {
            model: Fleet(model, [replica for replica in self.replicas if replica.model == model], queue_settings)
            for model in dict.fromkeys(models)
        }
        self._flights: dict[str, Flight] = {}  # by the job's id
        self.reports = Reports()

    @property
    def in_flight(self) -> int:
        """Jobs of all models that requests still wait for."""
        return len(self._flights)

    @property
    def capacity(self) -> int:
        """Jobs of all models that may be in flight."""
        return sum(fleet.capacity for fleet in self._fleets.values()) + sum(fleet.load for fleet in self._beside)

    @property
    def models(self) -> list[str]:
        """The names of all models, the default one first."""
        return sorted(self._fleets, key=lambda model: model != self.default)

    @property
    def alive(self) -> dict[str, bool]:
        """For each model, whether at least one of its replicas has a worker."""
        return {model: bool(fleet.alive) for model, fleet in self._fleets.items()}

    @property
    def statuses(self) -> Mapping[str, ModelStatus]:
        return {model: self._fleets[model].status for model in self.models}

    @property
    def ready(self) -> bool:
        """Whether every model takes jobs: it is served, or loaded on demand."""
        return all(fleet.alive or fleet.wake is not None for fleet in self._fleets.values()) and not self.draining

    def facts(self, model: str | None = None) -> Facts:
        """The facts of a model or an adapter, of the default model for None. Raises `UnknownModel`, and `NotReady` until it has been loaded
        once.
        """
        return self.fleet(model).facts_of(model if model in self.adapters else None)

    def loaded_facts(self) -> list[Facts]:
        """The facts of every model that has been loaded once."""
        fleets = [self._fleets[model] for model in self.models]
        return [fleet.facts for fleet in fleets if any(replica.facts is not None for replica in fleet.replicas)]

    @property
    def fleets(self) -> list[Fleet]:
        """Every version of every model, those that take new jobs first."""
        return [*self._fleets.values(), *self._beside]

    def adapted_facts(self) -> list[Facts]:
        """The facts of the adapters that these models serve."""
        loaded = {facts.name for facts in self.loaded_facts()}
        fleets = [self._fleets[base] for base in self.models if base in loaded]
        return [fleet.facts_of(name) for fleet in fleets for name in fleet.adapters if self.adapters.get(name) == fleet.model]

    def fleet(self, model: str | None) -> Fleet:
        """The version of a model, or of an adapter's base, that takes new jobs. Raises `UnknownModel`, or what `absent` has for it."""
        name = self.default if model is None else self.adapters.get(model, model)
        if name not in self._fleets:
            if name in self.absent:
                raise self.absent[name]
            names = ", ".join(f"'{served}'" for served in (*self.statuses, *self.adapters))
            raise UnknownModel(f"model '{name}' is not served here; this server has {names}", param="model")
        return self._fleets[name]

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
        late = DeadlineExceeded(f"the answer was not complete after {limit_s} s ({TIMEOUTS})")
        deadline = None if limit_s is None else asyncio.get_running_loop().call_later(limit_s, self.fail, flights, late)
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

    def check_job_count(self, count: int, model: str | None = None) -> None:
        """Raises `InvalidRequest` if one request may not have that many jobs. Cheap: call it before the jobs are made."""
        self.fleet(model).check_job_count(count)

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
            replica.worker, replica.facts = psutil.Process(ready.pid), ready.facts
        except psutil.NoSuchProcess:  # it died before its ready message was read; its successor sends one, too
            replica.worker = None
            return
        self.observer.worker_ready(ready.worker, replica.model)
        log.info("worker %d serves %s (%s, %s)", ready.pid, ready.facts.name, ready.facts.dtype, ready.facts.device)
        self.heard(ready)
        self.adapted(ready)  # before any job is sent to it
        for flight in self.waiting(self._fleet_of(replica)):
            self.move(flight, replica)

    def _fleet_of(self, replica: Replica) -> Fleet:
        return next(fleet for fleet in self.fleets if replica in fleet.replicas)

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
            replica.worker = replica.silent_rounds = None
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
        alive = self._fleet_of(flight.replica).alive
        if alive:
            self.move(flight, min(alive, key=lambda other: other.load))

    def move(self, flight: Flight, replica: Replica) -> None:
        flight.replica.load -= 1
        replica.load += 1
        flight.replica = replica
        self._send(flight)

    def fail_stranded(self) -> None:
        """Fail the jobs that have waited too long for a worker, and all that wait for one while the server shuts down."""
        oldest_s = math.inf if self.draining else asyncio.get_running_loop().time() - self.queue_settings.resume_wait_s
        stranded = [flight for flight in self._flights.values() if _waits(flight) and flight.waits_since_s <= oldest_s]
        self.fail(stranded, WorkerDied(WORKER_DIED))

    def fail_all(self, error: LitmusError) -> None:
        """End all jobs in flight and all pending reports with `error`."""
        self.fail(list(self._flights.values()), error)
        self.reports.fail(error)

    def add(self, fleet: Fleet) -> None:
        """Know the replicas of a version that is to be loaded; it gets no jobs yet."""
        self._beside.append(fleet)
        self.replicas += fleet.replicas

    def install(self, fleet: Fleet) -> Fleet | None:
        """Let a version that was added take the new jobs of its model. Returns the one that took them until now."""
        self.observer.add(fleet.model)
        self._beside.remove(fleet)
        if old := self._fleets.get(fleet.model):
            self._beside.append(old)
        self._fleets[fleet.model] = fleet
        self.absent.pop(fleet.model, None)
        return old

    def withdraw(self, model: str) -> Fleet:
        """Give the version of a model no new jobs; it finishes what it has."""
        fleet = self._fleets.pop(model)
        self._beside.append(fleet)
        return fleet

    def remove(self, fleet: Fleet) -> None:
        self._beside.remove(fleet)
        self.replicas = [replica for replica in self.replicas if replica not in fleet.replicas]


def _waits(flight: Flight) -> bool:
    """Whether no worker has the job, and one is wanted."""
    return flight.pid is None and not flight.has_ended
