"""Between routes and the workers: bounds what is in flight, picks a replica, hands events to their requests, notices who died.

Lives in the API process, on its event loop. LitServe's response reader calls `append` as if this were a response queue. Knows no
wire format and no model.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from app.engine.request import Delta, Event, Facts, Failed, Generate, Inspect, Job, Report, Waiting
from app.errors import InvalidRequest, LitmusError, NotReady, QueueFull, WorkerDied
from serve.affinity import Affinity

log = logging.getLogger(__name__)

WATCH_S = 0.2
LOOK_ROUND = 25  # every how-manieth watch
DIED = "the model's process died; a new one is starting, send the request again"
NONE = "the model is not loaded at the moment; /ready says when"
BUSY = "the engine did not answer in time: it is in the middle of a long step, ask again in a moment"
REPORT_S = 2.0


@dataclass(slots=True, eq=False)
class Replica:
    """A copy of the model in a process of its own."""

    number: int
    queue: Any = None  # to its worker; set by the spec, before the API process is forked
    worker: psutil.Process | None = None
    facts: Facts | None = None
    load: int = 0  # jobs in flight

    def send(self, content: Job | Inspect | str) -> None:
        assert self.worker is not None
        self.queue.put((self.worker.pid, content))


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
    def __init__(self, max_waiting: int, replicas: int = 1) -> None:
        self.replicas = [Replica(number) for number in range(replicas)]
        self.draining = False
        self._max_waiting = max_waiting
        self._affinity = Affinity()
        self._tickets: dict[str, Ticket] = {}
        self._asked: dict[str, tuple[Replica, asyncio.Future[Report]]] = {}

    @property
    def in_flight(self) -> int:
        return len(self._tickets)

    @property
    def ready(self) -> bool:
        return bool(self._alive()) and not self.draining

    def served(self) -> Facts:
        """What is served; all replicas serve the same."""
        facts = next((replica.facts for replica in self.replicas if replica.facts is not None), None)
        if facts is None:
            raise NotReady("the model is still loading; /ready says when it is served")
        return facts

    def _alive(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.worker is not None]

    @contextlib.asynccontextmanager
    async def open(self, jobs: list[Job]) -> AsyncIterator[Ticket]:
        """Send jobs to a worker; what has not ended when the block is left is cancelled. Raises what `_admit` raises."""
        replica = self._admit(jobs)
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

    async def report(self, number: int = 0) -> Report:
        """How a replica's engine stands. Takes no place in the queue. Raises `NotReady` when its worker does not answer, and
        `InvalidRequest` when there is no such replica.
        """
        if not 0 <= number < len(self.replicas):
            raise InvalidRequest(f"there is no replica {number}: they are 0..{len(self.replicas) - 1}", param="replica")
        replica = self.replicas[number]
        if replica.worker is None:
            raise NotReady(NONE)
        question = Inspect(f"inspect-{uuid.uuid4().hex}")
        answer: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = replica, answer
        try:
            replica.send(question)
            return await asyncio.wait_for(answer, REPORT_S)
        except TimeoutError:
            raise NotReady(BUSY) from None
        finally:
            del self._asked[question.id]

    def _admit(self, jobs: list[Job]) -> Replica:
        """Where the jobs go. Raises `NotReady`, `QueueFull`, or `InvalidRequest` for what can never fit."""
        alive = self._alive()
        if not alive or self.draining:
            raise NotReady("the server is shutting down" if self.draining else NONE)
        room = self.served().slots * len(alive) + self._max_waiting
        if len(jobs) > room:
            raise InvalidRequest(f"{len(jobs)} answers or texts in one request, but at most {room} may be in flight: send fewer")
        if self.in_flight + len(jobs) > room:
            raise QueueFull(f"{self.in_flight} of at most {room} answers and texts are in flight; try again in a moment")
        return alive[0] if len(alive) == 1 else self._choose(alive, jobs[0] if jobs else None)

    def _choose(self, alive: list[Replica], job: Job | None) -> Replica:
        """The replica that holds the conversation unless it has a whole round of slots more to do, else the least loaded one."""
        least = min(alive, key=lambda replica: replica.load)
        if not isinstance(job, Generate):
            return least
        home = self._affinity.home(job.prompt)
        chosen = next((replica for replica in alive if replica.number == home), least)
        if chosen.load > least.load + self.served().slots:
            chosen = least
        self._affinity.note(job.prompt, chosen.number)
        return chosen

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
            for replica in self._alive():
                if replica.worker is not None and _dead(replica.worker):
                    log.error("worker %d died with %d jobs in flight", replica.worker.pid, replica.load)
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
