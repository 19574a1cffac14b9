"""Between the routes and the workers: finds the model, sends jobs to a replica, delivers events to their requests, and sends the jobs of a
dead worker to another one.

Lives in the API process, on its event loop. LitServe's response reader calls `append` as if the router were a response queue. Knows no
wire format and no model.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import psutil

from app.engine.request import Event, Facts, Failed, Inspect, Interrupted, Job, Report
from app.errors import DeadlineExceeded, LitmusError, NotReady, UnknownModel, WorkerDied
from app.setting_groups import QueueSettings
from serve.observe.observer import Observer
from serve.workers.fleet import Fleet, Replica
from serve.workers.flight import Flight, JobEvents
from serve.workers.messages import Beat, Events, Message, Ready

log = logging.getLogger(__name__)

MAX_DEATHS = 2  # workers that may die with the same job; it may be the cause
REPORT_TIMEOUT_S = 2.0
WORKER_DIED = "the model's process died, and no other one took this request in time; send it again"
DIED_TWICE = "the model's process died twice while it had this request, which may be the cause; it is not tried a third time"
REPORT_LOST = "the model's process died before it answered; a new one is starting, ask again in a moment"
TIMEOUTS = "timeout_s, X-Request-Timeout or the server's queue.timeout_s"
ENGINE_BUSY = "the engine did not answer in time: it is in the middle of a long step, ask again in a moment"


class Router:
    """Routes to all replicas of all models. `models` names the model of each replica, the default model first."""

    def __init__(self, models: Sequence[str], queue_settings: QueueSettings) -> None:
        self.replicas = [Replica(number, model) for number, model in enumerate(models)]
        self.queue_settings = queue_settings
        self.draining = False
        self.observer = Observer(models)
        self._fleets = {
            model: Fleet(model, [replica for replica in self.replicas if replica.model == model], queue_settings)
            for model in dict.fromkeys(models)
        }
        self._flights: dict[str, Flight] = {}  # by the job's id
        self._pending_reports: dict[str, tuple[Replica, asyncio.Future[Report]]] = {}

    @property
    def in_flight(self) -> int:
        """Jobs of all models that requests still wait for."""
        return len(self._flights)

    @property
    def capacity(self) -> int:
        """Jobs of all models that may be in flight."""
        return sum(fleet.capacity for fleet in self._fleets.values())

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
    async def open(self, jobs: list[Job], model: str | None = None, timeout_s: float | None = None) -> AsyncIterator[JobEvents]:
        """Send jobs to a worker of the model and yield their events. Leaving the block cancels the jobs that have not ended. Those that
        have not ended after `timeout_s`, by default that of the queue, fail with `DeadlineExceeded`.

        Raises `NotReady` while the server shuts down, and what `Fleet.admit` raises.
        """
        if self.draining:
            raise NotReady("the server is shutting down")
        replica = self._fleet(model).admit(jobs)
        events = JobEvents(job.id for job in jobs)
        flights = [Flight(job, events, replica) for job in jobs]
        limit_s = self.queue_settings.timeout_s if timeout_s is None else timeout_s
        late = DeadlineExceeded(f"the answer was not complete after {limit_s} s ({TIMEOUTS})")
        deadline = None if limit_s is None else asyncio.get_running_loop().call_later(limit_s, self._fail, flights, late)
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
        """Queue the job for its replica's worker: the whole job, or what is left of it."""
        assert flight.replica.worker is not None
        flight.pid = flight.replica.worker.pid
        flight.replica.send(flight.rest())

    def _end(self, flight: Flight) -> None:
        """Forget a job that its request no longer waits for."""
        if self._flights.pop(flight.job.id, None) is not None:
            self.observer.ended(flight.job.id)
            flight.replica.load -= 1
            self._cancel(flight)

    def _cancel(self, flight: Flight) -> None:
        """Let the worker drop a job that it has not ended."""
        worker = flight.replica.worker
        if not flight.has_ended and worker is not None and worker.pid == flight.pid:
            with contextlib.suppress(OSError, EOFError):  # the process that holds the queue is gone, and the worker with it
                flight.replica.send(flight.job.id)

    def _fail(self, flights: Sequence[Flight], error: LitmusError) -> None:
        for flight in flights:
            self._cancel(flight)
            failed = Failed(flight.job.id, error)
            if flight.deliver(failed):
                self.observer.events([failed])

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

    def append(self, response: Sequence[Any]) -> None:
        """Take one message of a worker."""
        message: Message = response[0]
        if isinstance(message, Ready):
            self._register_worker(message)
        elif isinstance(message, Beat):
            self._note_beat(message)
        else:
            self._deliver(message)

    def _deliver(self, message: Events) -> None:
        delivered: list[Event] = []
        for event in message.events:
            if isinstance(event, Report):
                self._resolve_report(event)
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
        replica = self.replicas[ready.worker]
        if replica.worker is not None and replica.worker.pid != ready.pid:  # `watch` did not see the previous one die
            self.workers_died([replica])
        try:
            replica.worker, replica.facts = psutil.Process(ready.pid), ready.facts
        except psutil.NoSuchProcess:  # it died before its ready message was read; its successor sends one, too
            replica.worker = None
            return
        self.observer.worker_ready(ready.worker, replica.model)
        log.info("worker %d serves %s (%s, %s)", ready.pid, ready.facts.name, ready.facts.dtype, ready.facts.device)
        for flight in [flight for flight in self._flights.values() if _waits(flight) and flight.replica.model == replica.model]:
            self._move(flight, replica)

    def _resolve_report(self, report: Report) -> None:
        _, pending = self._pending_reports.get(report.id, (None, None))
        if pending is not None and not pending.done():
            pending.set_result(report)

    def workers_died(self, replicas: Iterable[Replica]) -> None:
        """Send the jobs of these replicas' workers to other replicas of their models; without one, they wait for the next worker."""
        dead = [(replica, replica.worker.pid) for replica in replicas if replica.worker is not None]
        for replica, _ in dead:  # all of them, before any job moves
            replica.worker = replica.silent_rounds = None
            self.observer.worker_died(replica.model)
            self._fail_reports(NotReady(REPORT_LOST), replica)
        for replica, pid in dead:
            for flight in [each for each in self._flights.values() if each.replica is replica and each.pid == pid and not each.has_ended]:
                self._interrupt(flight)

    def _interrupt(self, flight: Flight) -> None:
        flight.pid, flight.waits_since_s = None, asyncio.get_running_loop().time()
        flight.deaths += 1
        if flight.deaths >= MAX_DEATHS:
            self._fail([flight], WorkerDied(DIED_TWICE))
            return
        model = flight.replica.model
        flight.events.queue.put_nowait(Interrupted(flight.job.id))
        self.observer.interrupted(model)
        alive = self._fleets[model].alive
        if alive:
            self._move(flight, min(alive, key=lambda other: other.load))

    def _move(self, flight: Flight, replica: Replica) -> None:
        flight.replica.load -= 1
        replica.load += 1
        flight.replica = replica
        self._send(flight)

    def fail_stranded(self) -> None:
        """Fail the jobs that have waited too long for a worker, and all that wait for one while the server shuts down."""
        oldest_s = asyncio.get_running_loop().time() - (0 if self.draining else self.queue_settings.resume_wait_s)
        stranded = [flight for flight in self._flights.values() if _waits(flight) and flight.waits_since_s <= oldest_s]
        self._fail(stranded, WorkerDied(WORKER_DIED))

    def fail_all(self, error: LitmusError) -> None:
        """End all jobs in flight and all pending reports with `error`."""
        self._fail(list(self._flights.values()), error)
        self._fail_reports(error)

    def _fail_reports(self, error: LitmusError, replica: Replica | None = None) -> None:
        """Of one replica, or of all."""
        for target, pending in self._pending_reports.values():
            if replica in {None, target} and not pending.done():
                pending.set_exception(error)


def _waits(flight: Flight) -> bool:
    """Whether no worker has the job, and one is wanted."""
    return flight.pid is None and not flight.has_ended
