"""A whole run: the undisturbed answers, then load and disturbances together, then the end of the server. Returns everything it saw."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from loadtest.chaos.catalogue import PROBE, Request, client_requests
from loadtest.chaos.clients import Clients, Undisturbed, get, wait_ready
from loadtest.chaos.disturber import Disturber
from loadtest.chaos.ledger import Disturbance, Ledger
from loadtest.chaos.memory import Sample, measure
from loadtest.chaos.redis import Redis
from loadtest.chaos.schedule import Event
from loadtest.chaos.server import OwnServer, ServerFailed

log = logging.getLogger(__name__)

CAPACITIES = 4  # size of a burst, in capacities of the server
SAMPLE_S = 1.0
IDLE_S = 2.0  # between the last request and the last sample, in which connections close


@dataclass(frozen=True, slots=True)
class Options:
    """`requests`: different requests of each client. `tokens`: of the longest answers. `max_waiting`: places of the server's queue."""

    clients: int = 32
    minutes: float = 10.0
    requests: int = 6
    tokens: int = 96
    max_waiting: int = 64
    deadline_s: float = 60.0
    seed: int = 0


@dataclass(slots=True)
class Seen:
    """What a run saw. `aborted` says why it ended early; growth of memory is read from `warm_s` on."""

    ledger: Ledger = field(default_factory=Ledger)
    samples: list[Sample] = field(default_factory=list)
    start_s: float = 0.0
    warm_s: float = 0.0
    end_s: float = 0.0
    capacity: int = 0
    comments: int = 0
    aborted: str | None = None
    end: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def connect() -> AsyncIterator[aiohttp.ClientSession]:
    """A connection for each request: one that is kept may be closed by the server while the next request is on its way."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        yield http


async def run(options: Options, server: OwnServer, events: Sequence[Event], redis: Redis | None = None) -> Seen:
    seen = Seen()
    async with connect() as http:
        clients = Clients(http, server, seen.ledger, options.deadline_s)
        lists = [client_requests(client, options.requests, options.seed, options.tokens) for client in range(options.clients)]
        everything = [request for requests in lists for request in requests]
        disturber = Disturber(clients, server, everything, options.clients, 0, options.seed, time.monotonic(), redis)
        server.start()
        try:
            await wait_ready(http, server)
            seen.capacity = await capacity(http, server.url, options.max_waiting)
            disturber.burst_size = CAPACITIES * seen.capacity
            log.info("asking %d requests undisturbed", len(everything))
            await clients.learn([*everything, PROBE])
            await _press(clients, disturber, lists, events, seen)
        except (ServerFailed, Undisturbed) as error:
            seen.aborted = str(error)
        except ExceptionGroup as group:
            seen.aborted = "; ".join(str(error) for error in group.exceptions)
        finally:
            seen.comments = clients.comments
            await _finish(server, seen)
    return seen


async def capacity(http: aiohttp.ClientSession, url: str, max_waiting: int) -> int:
    """How many requests the default model takes: its slots and the places of its queue."""
    cards = (await get(http, f"{url}/v1/models"))["data"]
    return int(cards[0]["slots"]) + max_waiting


async def _press(clients: Clients, disturber: Disturber, lists: Sequence[Sequence[Request]], events: Sequence[Event], seen: Seen) -> None:
    """Load and disturbances together. The load stays until the last disturbance is over, and every request is waited for."""
    seen.start_s = disturber.start_s = time.monotonic()
    sampling = asyncio.create_task(_sample(disturber.server, seen))
    load = [asyncio.create_task(clients.repeat(requests)) for requests in lists]
    try:
        await disturber.follow(events)
    finally:
        clients.stopping = True
        await asyncio.gather(*load, *disturber.crowds)
        seen.end_s = time.monotonic()
        await asyncio.sleep(IDLE_S)
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
        seen.warm_s = warm_s(seen.ledger.disturbances, seen.start_s)


def warm_s(disturbances: Sequence[Disturbance], start_s: float) -> float:
    """When the server had everything behind it that makes it larger once: its last restart, and the first burst after it."""
    restarts = [found.at_s + (found.served_again_s or 0.0) for found in disturbances if "exit_code" in found.facts]
    last = max(restarts, default=start_s)
    bursts = [found.at_s + found.facts.get("over_s", 0.0) for found in disturbances if found.kind == "burst" and found.at_s >= last]
    return min(bursts, default=last)


async def _sample(server: OwnServer, seen: Seen) -> None:
    while True:
        with suppress(ServerFailed):  # no worker at the moment
            seen.samples.append(measure(server.processes(), time.monotonic(), server.worker().pid))
        await asyncio.sleep(SAMPLE_S)


async def _finish(server: OwnServer, seen: Seen) -> None:
    """Stop the server for good."""
    if server.ended:
        code = server.process.returncode if server.process is not None else None
        seen.aborted = seen.aborted or f"the server ended by itself with code {code}"
    server.terminate()
    seen.end = await asyncio.to_thread(server.clean_up)


def log_faults(log_file: Path) -> int:
    """Tracebacks in the server's log."""
    return log_file.read_text(errors="replace").count("Traceback (most recent call last)") if log_file.exists() else 0
