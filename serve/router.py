"""Between routes and the worker: bounds what is in flight, hands events to their requests, notices a worker that died.

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
from typing import Any

import psutil

from app.engine.request import Delta, Event, Facts, Failed, Inspect, Job, Report, Waiting
from app.errors import InvalidRequest, LitmusError, NotReady, QueueFull, WorkerDied

log = logging.getLogger(__name__)

WATCH_S = 0.2
LOOK_ROUND = 25  # every how-manieth watch
DIED = "the model's process died; a new one is starting, send the request again"
NONE = "the model is not loaded at the moment; /ready says when"
BUSY = "the engine did not answer in time: it is in the middle of a long step, ask again in a moment"
REPORT_S = 2.0


class Ticket:
    """The jobs of one request. Iterating gives their events until each job has ended."""

    def __init__(self, ids: Iterable[str]) -> None:
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
    def __init__(self, max_waiting: int) -> None:
        self.request_queue: Any = None  # set by the spec, before the API process is forked
        self.facts: Facts | None = None
        self.draining = False
        self._max_waiting = max_waiting
        self._worker: psutil.Process | None = None
        self._tickets: dict[str, Ticket] = {}
        self._asked: dict[str, asyncio.Future[Report]] = {}

    @property
    def in_flight(self) -> int:
        return len(self._tickets)

    @property
    def ready(self) -> bool:
        return self._worker is not None and not self.draining

    def served(self) -> Facts:
        if self.facts is None:
            raise NotReady("the model is still loading; /ready says when it is served")
        return self.facts

    @contextlib.asynccontextmanager
    async def open(self, jobs: list[Job]) -> AsyncIterator[Ticket]:
        """Send jobs to the worker; what has not ended when the block is left is cancelled. Raises what `_admit` raises."""
        worker = self._admit(jobs)
        ticket = Ticket(job.id for job in jobs)
        try:
            for job in jobs:
                self._tickets[job.id] = ticket
                self.request_queue.put((worker, job))
            yield ticket
        finally:
            for job in jobs:
                if self._tickets.pop(job.id, None) is not None and job.id in ticket.open:
                    with contextlib.suppress(OSError, EOFError):  # the queue's own process has gone: there is nobody to tell
                        self.request_queue.put((worker, job.id))

    async def report(self) -> Report:
        """How the engine stands. Takes no place in the queue. Raises `NotReady` when no worker answers."""
        if self._worker is None:
            raise NotReady(NONE)
        question = Inspect(f"inspect-{uuid.uuid4().hex}")
        answer = self._asked[question.id] = asyncio.get_running_loop().create_future()
        try:
            self.request_queue.put((self._worker.pid, question))
            return await asyncio.wait_for(answer, REPORT_S)
        except TimeoutError:
            raise NotReady(BUSY) from None
        finally:
            del self._asked[question.id]

    def _admit(self, jobs: list[Job]) -> int:
        """Raises `NotReady`, `QueueFull`, or `InvalidRequest` for what can never fit. Returns the worker's pid."""
        if self._worker is None or self.draining:
            raise NotReady("the server is shutting down" if self.draining else NONE)
        room = self.served().slots + self._max_waiting
        if len(jobs) > room:
            raise InvalidRequest(f"{len(jobs)} answers or texts in one request, but at most {room} may be in flight: send fewer")
        if self.in_flight + len(jobs) > room:
            raise QueueFull(f"{self.in_flight} of at most {room} answers and texts are in flight; try again in a moment")
        return self._worker.pid

    def append(self, response: list[Any]) -> None:
        """One item from the worker: its hello `(pid, Facts)`, or the events of a step."""
        data = response[0]
        if isinstance(data, tuple):
            self.fail_all(WorkerDied(DIED))  # what an earlier worker left, if its end was not seen
            try:
                self._worker, self.facts = psutil.Process(data[0]), data[1]
            except psutil.NoSuchProcess:  # it died before its hello was read; the next one will say hello, too
                self._worker = None
                return
            log.info("worker %d serves %s (%s, %s)", data[0], data[1].name, data[1].dtype, data[1].device)
            return
        for event in data:
            if isinstance(event, Report):
                self._answer(event)
                continue
            ticket = self._tickets.get(event.id)
            if ticket is not None:
                ticket.events.put_nowait(event)

    def _answer(self, report: Report) -> None:
        asked = self._asked.get(report.id)
        if asked is not None and not asked.done():
            asked.set_result(report)

    async def watch(self) -> None:
        """Runs as long as the server: fails what a dead worker held, and ends everything when the main process is gone."""
        parent = psutil.Process(os.getppid())
        family = _children(parent)
        for beat in itertools.count(1):
            await asyncio.sleep(WATCH_S)
            if self._worker is not None and _dead(self._worker):
                log.error("worker %d died with %d jobs in flight", self._worker.pid, self.in_flight)
                self._worker = None
                self.fail_all(WorkerDied(DIED))
            if not self.draining and os.getppid() != parent.pid:
                log.error("the main process is gone: ending with it")
                for sibling in family:  # this process among them; the holder of the queues has a copy of the listening socket, too
                    with contextlib.suppress(psutil.NoSuchProcess):
                        sibling.kill()
            if beat % LOOK_ROUND == 0:  # it reads the whole of /proc
                family = _children(parent) or family

    def fail_all(self, error: LitmusError) -> None:
        """End everything in flight with `error`."""
        for id, ticket in self._tickets.items():
            ticket.events.put_nowait(Failed(id, error))
        for asked in self._asked.values():
            if not asked.done():
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
