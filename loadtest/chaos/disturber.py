"""Does to the server what the schedule says, and times how it takes it: until it says that it is not ready, until it serves again."""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

import psutil

from loadtest.chaos.catalogue import PROBE, Request, shuffled
from loadtest.chaos.clients import POLL_S, START_TIMEOUT_S, Clients, status_of, wait_ready
from loadtest.chaos.ledger import Disturbance
from loadtest.chaos.redis import Redis
from loadtest.chaos.schedule import LEAVERS, Event
from loadtest.chaos.server import FULL_DISK, OwnServer, ServerFailed

log = logging.getLogger(__name__)

READY_POLL_S = 0.02
KILL_WATCH_S = 5.0  # how long /ready is asked after a kill whether it has noticed
FULL_DISK_S = 30.0  # how long a kill on a full disk may take to be got over
HANG_LIMIT_S = 10.0  # a stopped worker has to be noticed and replaced within
HANG_WATCH_S = 15.0  # then the run ends the hang itself, by a kill
SETTLE_POLL_S = 0.05


@dataclass(slots=True)
class Disturber:
    """`requests` are those of all clients; `burst_size` of them are sent at once, `steady` clients are there all the time."""

    clients: Clients
    server: OwnServer
    requests: Sequence[Request]
    steady: int
    burst_size: int
    seed: int
    start_s: float
    redis: Redis | None = None
    crowds: list[asyncio.Task[None]] = field(default_factory=list)

    async def follow(self, events: Sequence[Event]) -> None:
        """Do the events in turn, each at its time or, when earlier ones took longer, as soon as they are over. Raises `ServerFailed`."""
        for event in events:
            await asyncio.sleep(max(0.0, self.start_s + event.at_s - time.monotonic()))
            log.info("%.0f s: %s", time.monotonic() - self.start_s, event.act)
            await self._do(event)
        await asyncio.gather(*self.crowds)

    async def _do(self, event: Event) -> None:
        match event.act:
            case "kill":
                await self.kill()
            case "kill on a full disk":
                await self.kill_on_full_disk()
            case "hang":
                await self.hang()
            case "restart" | "start on a full disk":
                await self.restart(event.act, event.act != "restart")
            case "burst" | "leave":
                self._send_crowd(event)
            case "redis stops" if self.redis is not None:
                self._disturb(event.act)
                self.redis.stop()
            case "redis starts" if self.redis is not None:
                self._disturb(event.act)
                await asyncio.to_thread(self.redis.start)

    def _disturb(self, kind: str) -> Disturbance:
        return self.clients.ledger.disturb(kind, time.monotonic())

    def _send_crowd(self, event: Event) -> None:
        """Crowds come on top of the load and may still be there at the next event."""
        disturbance, seed = self._disturb(event.act), f"{self.seed}/{event.at_s}"
        if event.act == "burst":
            crowd = self.clients.burst(shuffled(self.requests, self.burst_size, seed))
        else:
            crowd = self.clients.leave(shuffled(self.requests, LEAVERS, seed), random.Random(seed))
        self.crowds.append(asyncio.create_task(self._time_crowd(disturbance, crowd)))

    async def _time_crowd(self, disturbance: Disturbance, crowd: Coroutine[None, None, None]) -> None:
        await crowd
        disturbance.facts["over_s"] = round(time.monotonic() - disturbance.at_s, 2)

    async def kill(self) -> None:
        await self._settle()
        await self._kill(self._disturb("kill"), START_TIMEOUT_S)

    async def _kill(self, disturbance: Disturbance, limit_s: float) -> None:
        self.server.worker().kill()
        await asyncio.gather(self._time_not_ready(disturbance, KILL_WATCH_S), self._time_served_again(disturbance, limit_s))

    async def kill_on_full_disk(self) -> None:
        """The server can write nothing to its log while its worker dies and another one starts. If none does, give the disk room again."""
        await self._settle()
        disturbance = self._disturb("kill on a full disk")
        self.server.limit_files(True)
        await self._kill(disturbance, FULL_DISK_S)
        self.server.limit_files(False)
        disturbance.facts["goes_on"] = disturbance.served_again_s is not None
        if not disturbance.facts["goes_on"]:
            log.info("no worker came up within %.0f s on a full disk", FULL_DISK_S)
            await self._time_served_again(disturbance)

    async def hang(self) -> None:
        """Stop the worker as SIGSTOP does. If nobody replaces it, kill it after `HANG_WATCH_S`."""
        await self._settle()
        worker = self.server.worker()
        disturbance = self._disturb("hang")
        worker.send_signal(signal.SIGSTOP)
        await self._time_not_ready(disturbance, HANG_WATCH_S)
        replaced = await self._is_gone(worker, disturbance.at_s + HANG_WATCH_S)
        disturbance.facts["detected"] = replaced and (disturbance.not_ready_s or HANG_WATCH_S) <= HANG_LIMIT_S
        if not replaced:
            worker.kill()
        await self._time_served_again(disturbance)

    async def _is_gone(self, worker: psutil.Process, until_s: float) -> bool:
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def restart(self, kind: str, full_disk: bool) -> None:
        """Stop the server by SIGTERM and start it again on the same port; with `full_disk`, no line of its log can be written then."""
        await self._settle()
        disturbance = self._disturb(kind)
        self.server.terminate()
        while not self.server.ended and time.monotonic() < disturbance.at_s + START_TIMEOUT_S:
            await asyncio.sleep(POLL_S)
        disturbance.facts["exit_s"] = round(time.monotonic() - disturbance.at_s, 2)
        disturbance.facts |= await asyncio.to_thread(self.server.clean_up)
        if full_disk:
            self.server.start(FULL_DISK)
            disturbance.facts["goes_on"] = await self._starts()
        else:
            self.server.start()
            await wait_ready(self.clients.http, self.server)
        await self._time_served_again(disturbance)

    async def _starts(self) -> bool:
        """Whether the server comes up on a full disk. If it does not, start it again on one with room."""
        try:
            await wait_ready(self.clients.http, self.server)
        except ServerFailed:
            await asyncio.to_thread(self.server.clean_up)
            self.server.start()
            await wait_ready(self.clients.http, self.server)
            return False
        return True

    async def _settle(self) -> None:
        """Wait until the server is ready, each steady client has had an answer on average, and no request is left that an earlier
        disturbance caught: one that two deaths catch may be their cause, and need not be answered.
        """
        ledger = self.clients.ledger
        end = time.monotonic() + START_TIMEOUT_S
        caught = [found for found in ledger.disturbances if found.kind not in {"burst", "leave"}]
        await wait_ready(self.clients.http, self.server)
        answers = ledger.answered + self.steady
        while time.monotonic() < end:
            await wait_ready(self.clients.http, self.server)
            if ledger.answered >= answers and not any(map(ledger.touched, caught)):
                return
            await asyncio.sleep(SETTLE_POLL_S)
        raise ServerFailed(f"the load did not come back within {START_TIMEOUT_S:.0f} s of a disturbance")

    async def _time_not_ready(self, disturbance: Disturbance, limit_s: float) -> None:
        """When /ready first answers something other than 200, or nothing."""
        while (passed_s := time.monotonic() - disturbance.at_s) < limit_s:
            if await status_of(self.clients.http, f"{self.server.url}/ready") != 200:
                disturbance.not_ready_s = round(time.monotonic() - disturbance.at_s, 3)
                return
            await asyncio.sleep(READY_POLL_S if passed_s < 1 else POLL_S)

    async def _time_served_again(self, disturbance: Disturbance, limit_s: float = START_TIMEOUT_S) -> None:
        """When a request sent after the disturbance is first answered. Raises `ServerFailed` if none is within `START_TIMEOUT_S`."""
        while time.monotonic() < disturbance.at_s + limit_s:
            ending, _ = await self.clients.send(PROBE)
            if ending.outcome == "answered":
                disturbance.served_again_s = round(time.monotonic() - disturbance.at_s, 2)
                return
            self.server.check_running()
            await asyncio.sleep(POLL_S)
        if limit_s >= START_TIMEOUT_S:
            raise ServerFailed(f"no request was served within {limit_s:.0f} s after a {disturbance.kind}; its log: {self.server.log}")
