"""A shelf of adapters whose workers answer when a test says so."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from fakes import FACTS

from app.engine.facts import AdapterFacts
from app.engine.request import Generate
from app.errors import LitmusError
from app.scoring.detector import Detector
from app.settings import JobSettings, ModelSettings, QueueSettings, SecuritySettings, ServerSettings, Settings
from serve.workers.fleet import Fleet, Replica
from serve.workers.messages import AdapterRead, Ready
from serve.workers.router import Router
from serve.workers.shelf import Shelf

PID = psutil.Process().pid
NAME = "ft:fake:alice:7p4lURel"
JOB = Generate("a", (1, 2, 3), 5, adapter=NAME)


class Outbox(list[Any]):
    """What a worker is sent."""

    def put(self, message: tuple[int, Any]) -> None:
        self.append(message[1])


class Server:
    """A router, its shelf, and workers that answer when the test says so."""

    def __init__(self, folder: Path, replicas: int = 1, **model: Any) -> None:
        base = ModelSettings(path=str(folder / "base"), name=FACTS.name, **model)
        security = SecuritySettings(model_paths=(str(folder / "allowed"),))
        jobs, server = JobSettings(folder=str(folder / "jobs")), ServerSettings(drain_s=30)
        settings = Settings.model_construct(model=base, security=security, jobs=jobs, server=server)
        self.router = Router([FACTS.name] * replicas, QueueSettings(max_waiting=8))
        self.detectors: dict[str, Detector] = {}
        self.bases = {FACTS.name: base}
        self.shelf = Shelf(self.router, settings, self.detectors, self.bases.get)
        self.file = folder / "jobs" / "adapters.json"

    def start(self, number: int = 0, *adapters: AdapterFacts) -> Outbox:
        replica = next(replica for replica in self.router.replicas if replica.number == number)
        replica.queue = Outbox()
        self.router.append([Ready(PID, number, replace(FACTS, adapters=adapters)), "OK"])
        return replica.queue

    def read(self, name: str, reason: str = "", number: int = 0, pid: int = PID) -> None:
        facts = None if reason else AdapterFacts(name, f"/{name}", f"base+{name}", f"fp_{name}")
        self.router.append([AdapterRead(pid, number, name, facts, reason), "OK"])

    async def during(self, change: Coroutine[Any, Any, None], *numbers: int, reason: str = "") -> LitmusError | None:
        """The error of a change of NAME, whose workers answer meanwhile."""
        task = asyncio.ensure_future(change)
        await asyncio.sleep(0)
        for number in numbers:
            self.read(NAME, reason, number)
        error = (await asyncio.gather(task, return_exceptions=True))[0]
        assert error is None or isinstance(error, LitmusError), error
        return error


async def with_new_version(folder: Path) -> tuple[Server, Fleet]:
    """A server that has the adapter NAME, and a version of its model whose worker is still to start."""
    server, version = Server(folder), Fleet("fake", [Replica(1, "fake")], QueueSettings())
    server.start()
    await server.during(server.shelf.keep(NAME, "/tuned", FACTS.name), 0)
    server.router.add(version)
    return server, version


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))
