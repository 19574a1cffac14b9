"""Between routes and the workers: finds the model, hands jobs to a replica and events to their requests, notices who died.

Lives in the API process, on its event loop. LitServe's response reader calls `append` as if this were a response queue. Knows no
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
from serve.workers.fleet import Fleet, Replica

log = logging.getLogger(__name__)

WATCH_S = 0.2
LOOK_ROUND = 25  # every how-manieth watch
DIED = "the model's process died; a new one is starting, send the request again"
BUSY = "the engine did not answer in time: it is in the middle of a long step, ask again in a moment"
REPORT_S = 2.0


class Ticket:
    """The jobs of one request. Iterating gives their events until each job has ended."""

    def __init__(self, ids: Iterable[str], replica: Replica) -> None:
        self.replica = replica
        self.open = set(ids)
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self.open:
            event = await self.events.get()
            if _ends(event):
                self.open.discard(event.id)
            yield event


def _ends(event: Event) -> bool:
    """Whether its job is over."""
    return event.finish is not None if isinstance(event, Delta) else not isinstance(event, Waiting)


class Router:
    """Over all replicas of all models. `models` names the model of each replica, the default model's first."""

    def __init__(self, max_waiting: int, models: Sequence[str]) -> None:
        self.replicas = [Replica(number, model) for number, model in enumerate(models)]
        self.draining = False
        self._fleets = {
            model: Fleet(model, [replica for replica in self.replicas if replica.model == model], max_waiting)
            for model in dict.fromkeys(models)
        }
        self._tickets: dict[str, Ticket] = {}
        self._asked: dict[str, tuple[Replica, asyncio.Future[Report]]] = {}

    @property
    def in_flight(self) -> int:
        return len(self._tickets)

    @property
    def models(self) -> list[str]:
        """The default one first."""
        return list(self._fleets)

    @property
    def alive(self) -> dict[str, bool]:
        """Of each model, whether one of its replicas lives."""
        return {model: bool(fleet.alive) for model, fleet in self._fleets.items()}

    @property
    def ready(self) -> bool:
        """Whether every model is served."""
        return all(self.alive.values()) and not self.draining

    def served(self, model: str | None = None) -> Facts:
        """What is served under a name. Raises `UnknownModel`, and `NotReady` while it has never been loaded."""
        return self._fleet(model).facts

    def loaded(self) -> list[Facts]:
        """What is served under every name whose model has been loaded once."""
        found = {replica.model: replica.facts for replica in self.replicas if replica.facts is not None}
        return [found[model] for model in self._fleets if model in found]

    def _fleet(self, model: str | None) -> Fleet:
        name = next(iter(self._fleets)) if model is None else model
        if name not in self._fleets:
            served = ", ".join(f"'{served}'" for served in self._fleets)
            raise UnknownModel(f"model '{name}' is not served here; {served} {'is' if len(self._fleets) == 1 else 'are'}", param="model")
        return self._fleets[name]

    @contextlib.asynccontextmanager
    async def open(self, jobs: list[Job], model: str | None = None) -> AsyncIterator[Ticket]:
        """Send jobs to a worker of the model; what has not ended when the block is left is cancelled. Raises what `Fleet.admit` raises."""
        if self.draining:
            raise NotReady("the server is shutting down")
        replica = self._fleet(model).admit(jobs)
        worker = replica.worker
        ticket = Ticket((job.id for job in jobs), replica)
        try:
            for job in jobs:
                self._tickets[job.id] = ticket
                replica.load += 1
                replica.send(job)
            yield ticket
        finally:
            for job in jobs:
                if self._tickets.pop(job.id, None) is None:
                    continue
                replica.load -= 1
                if job.id in ticket.open and replica.worker is worker is not None:
                    with contextlib.suppress(OSError, EOFError):  # the queue's own process has gone: there is nobody to tell
                        replica.send(job.id)

    def check(self, count: int, model: str | None = None) -> None:
        """Raises `InvalidRequest` for a request of more jobs than may be in flight, before any of them is made."""
        self._fleet(model).check(count)

    async def report(self, model: str | None = None, replica: int = 0) -> Report:
        """How the engine of a model's replica stands. Takes no place in the queue. Raises `NotReady` when its worker does not answer, and
        `InvalidRequest` when there is no such replica.
        """
        asked = self._fleet(model).replica(replica)
        question = Inspect(f"inspect-{uuid.uuid4().hex}")
        answer: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = asked, answer
        try:
            asked.send(question)
            return await asyncio.wait_for(answer, REPORT_S)
        except TimeoutError:
            raise NotReady(BUSY) from None
        finally:
            del self._asked[question.id]

    def append(self, response: list[Any]) -> None:
        """One item from a worker: its hello `(pid, replica, Facts)`, or the events of a step."""
        data = response[0]
        if isinstance(data, tuple):
            self._welcome(*data)
            return
        for event in data:
            if isinstance(event, Report):
                self._answer(event)
                continue
            ticket = self._tickets.get(event.id)
            if ticket is not None:
                ticket.events.put_nowait(event)

    def _welcome(self, pid: int, number: int, facts: Facts) -> None:
        replica = self.replicas[number]
        self.fail_all(WorkerDied(DIED), replica)  # what an earlier worker left, if its end was not seen
        try:
            replica.worker, replica.facts = psutil.Process(pid), facts
        except psutil.NoSuchProcess:  # it died before its hello was read; the next one will say hello, too
            replica.worker = None
            return
        log.info("worker %d serves %s (%s, %s)", pid, facts.name, facts.dtype, facts.device)

    def _answer(self, report: Report) -> None:
        _, asked = self._asked.get(report.id, (None, None))
        if asked is not None and not asked.done():
            asked.set_result(report)

    async def watch(self) -> None:
        """Runs as long as the server: fails what a dead worker held, and ends everything when the main process is gone."""
        parent = psutil.Process(os.getppid())
        family = _children(parent)
        for beat in itertools.count(1):
            await asyncio.sleep(WATCH_S)
            for replica in self.replicas:
                if replica.worker is not None and _dead(replica.worker):
                    log.error("worker %d of %s died with %d jobs in flight", replica.worker.pid, replica.model, replica.load)
                    replica.worker = None
                    self.fail_all(WorkerDied(DIED), replica)
            if not self.draining and os.getppid() != parent.pid:
                log.error("the main process is gone: ending with it")
                for sibling in family:  # this process among them; the holder of the queues has a copy of the listening socket, too
                    with contextlib.suppress(psutil.NoSuchProcess):
                        sibling.kill()
            if beat % LOOK_ROUND == 0:  # it reads the whole of /proc
                family = _children(parent) or family

    def fail_all(self, error: LitmusError, replica: Replica | None = None) -> None:
        """End everything in flight, or everything on one replica, with `error`."""
        for id, ticket in self._tickets.items():
            if replica in {None, ticket.replica}:
                ticket.events.put_nowait(Failed(id, error))
        for asked_of, asked in self._asked.values():
            if replica in {None, asked_of} and not asked.done():
                asked.set_exception(error)


def _dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children()
    return []
