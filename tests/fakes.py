"""An engine without a model, and a worker without a process: what drives the routes in tests."""

import asyncio

from app.engine.request import Columns, Delta, Event, Facts, Failed, Generate, Job, Score, Scored
from app.errors import EngineFailed
from serve.router import Router

FACTS = Facts("fake", 64, 2, "none", "float32", "cpu", "fake-base", True)
WORKER = 2**22 + 1  # above the largest pid, so never a process


def answer_of(job: Generate) -> str:
    """What the fake engine says: as many words as tokens were asked for, told apart by prompt length and seed."""
    return "".join(f"{len(job.prompt)}/{job.sampling.seed}/{place} " for place in range(job.max_tokens))


def columns_of(job: Score) -> Columns:
    count = len(job.tokens) - 1
    crossed = (2.0,) * count if job.observe else ()
    return Columns(tuple(-token / 100 for token in job.tokens[1:]), (1,) * count, (-1.0,) * count, (1.0,) * count, crossed)


class FakeEngine:
    """One word a step for every job at once. A text that holds token `poison` fails."""

    def __init__(self, poison: int = -1) -> None:
        self.jobs: dict[str, tuple[Job, int]] = {}
        self.cancelled: list[str] = []
        self.poison = poison

    def submit(self, job: Job) -> None:
        self.jobs[job.id] = (job, 0)

    def cancel(self, id: str) -> bool:
        self.cancelled.append(id)
        return self.jobs.pop(id, None) is not None

    def step(self) -> list[Event]:
        return [self._advance(job, done) for job, done in list(self.jobs.values())]

    def _advance(self, job: Job, done: int) -> Event:
        if isinstance(job, Score):
            del self.jobs[job.id]
            return Failed(job.id, EngineFailed("poisoned")) if self.poison in job.tokens else Scored(job.id, columns_of(job))
        self.jobs[job.id] = (job, done + 1)
        if done + 1 == job.max_tokens:
            del self.jobs[job.id]
        word = f"{len(job.prompt)}/{job.sampling.seed}/{done} "
        return Delta(job.id, word, 1, "length" if done + 1 == job.max_tokens else None)


class FakeWorker:
    """Stands where the request queue stands: steps its engine on the event loop until `stalled`."""

    def __init__(self, router: Router, engine: FakeEngine) -> None:
        self.router, self.engine = router, engine
        self.stalled = False
        self._task: asyncio.Task[None] | None = None

    def put(self, message: tuple[int, Job | str]) -> None:
        _, content = message
        if isinstance(content, str):
            self.engine.cancel(content)
            return
        self.engine.submit(content)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self.engine.jobs:
            await asyncio.sleep(0.001)
            if not self.stalled:
                self.router.append([self.engine.step(), "OK"])
