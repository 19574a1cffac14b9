"""A router over a fake worker that dies and comes back as a test tells it."""

import psutil
from fakes import FACTS, FakeEngine, FakeWorker

from app.engine.request import Generate, SamplingParams
from app.settings import QueueSettings
from serve.workers.messages import Ready
from serve.workers.router import Router


def job(name: str, max_tokens: int = 3) -> Generate:
    return Generate(name, (1, 2), max_tokens, SamplingParams(seed=1))


def create(waiting: int = 1, **queue: float | None) -> tuple[Router, FakeWorker]:
    router = Router([FACTS.name], QueueSettings.model_validate({"max_waiting": waiting, **queue}))
    worker = FakeWorker(router, FakeEngine())
    router.replicas[0].queue = worker
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
    return router, worker


def die(router: Router, worker: FakeWorker) -> None:
    """The worker's process dies with all its jobs."""
    worker.engine.jobs.clear()
    router.workers_died(router.replicas[:1])


def revive(router: Router) -> None:
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])


async def all_of(events: object) -> list[object]:
    return [event async for event in events]  # type: ignore[attr-defined]
