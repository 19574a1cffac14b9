"""An engine without a model, and a worker without a process: what drives the routes in tests."""

import asyncio
from dataclasses import replace

from app.engine.request import (
    Columns,
    Decision,
    Delta,
    Event,
    Facts,
    Failed,
    Generate,
    Inspect,
    Job,
    Report,
    Residence,
    Score,
    Scored,
    TokenLogprob,
    Waiting,
)
from app.errors import EngineFailed
from serve.workers.router import Router

FACTS = Facts("fake", 64, 2, "none", "float32", "cpu", "fake-base", True)
WORKER = 2**22 + 1  # above the largest pid, so never a process


def answer_of(job: Generate) -> str:
    """What the fake engine says: as many words as tokens were asked for, told apart by prompt length and seed."""
    return "".join(f"{len(job.prompt)}/{job.sampling.seed}/{place} " for place in range(job.max_tokens))


def columns_of(job: Score) -> Columns:
    count = len(job.tokens) - 1
    crossed = (2.0,) * count if job.observe else ()
    return Columns(tuple(-token / 100 for token in job.tokens[1:]), (1,) * count, (-1.0,) * count, (1.0,) * count, crossed)


def logprob_of(job: Generate, place: int) -> TokenLogprob:
    """What the fake engine says of the token at `place`: a letter, less likely the later it comes, likelier the larger its seed."""
    token, logprob = 2 + place, -1.0 - place + (job.sampling.seed % 8) / 16
    return likely(token, logprob, job.logprobs or 0)


def likely(token: int, logprob: float, most: int) -> TokenLogprob:
    """The token itself is the second likeliest."""
    top = ((token + 1, logprob + 0.5), (token, logprob), *((token + 2 + place, logprob - 1 - place) for place in range(most)))
    return TokenLogprob(token, logprob, top[:most])


def prompt_logprobs_of(job: Generate) -> tuple[TokenLogprob, ...]:
    if job.prompt_logprobs is None:
        return ()
    return tuple(likely(token, -token / 100, job.prompt_logprobs) for token in job.prompt[1:])


class FakeEngine:
    """One word a step for every job at once. A text or prompt that holds token `poison` fails."""

    def __init__(self, poison: int = -1) -> None:
        self.jobs: dict[str, tuple[Job, int]] = {}
        self.seen: list[Job] = []
        self.cancelled: list[str] = []
        self.poison = poison
        self.queue = 0  # steps that a job waits before its first word
        self.cached = 0  # tokens of a prompt that are said to have been there
        self.script: list[tuple[str, tuple[int, ...]]] = []  # text and tokens of each step, instead of a word and a letter

    @property
    def idle(self) -> bool:
        return not self.jobs

    def submit(self, job: Job) -> None:
        self.seen.append(job)
        self.jobs[job.id] = (job, -self.queue)

    def cancel(self, id: str) -> bool:
        self.cancelled.append(id)
        return self.jobs.pop(id, None) is not None

    def step(self) -> list[Event]:
        return [self._advance(job, done) for job, done in list(self.jobs.values())]

    def report(self, id: str) -> Report:
        slots = (Residence(0, "decode", "a/0", 5, 7, 3), Residence(1, "idle", None, 0, 4, 0))
        decision = Decision(1753000000.25, "a/0", 0, "holds its beginning", 0.5, 2, 5)
        return Report(id, slots, (Waiting("b/0", 1, 1.5), Waiting("c/0", 2, None)), 3, (decision,))

    def _advance(self, job: Job, done: int) -> Event:
        self.jobs[job.id] = (job, done + 1)
        if done < 0:
            return Waiting(job.id, -done, None if -done == self.queue else -done / 4)
        if isinstance(job, Score):
            del self.jobs[job.id]
            return Failed(job.id, EngineFailed("poisoned")) if self.poison in job.tokens else Scored(job.id, columns_of(job))
        if self.poison in job.prompt:
            del self.jobs[job.id]
            return Failed(job.id, EngineFailed("poisoned"))
        delta = self._scripted(job, done) if self.script else self._word(job, done)
        if delta.finish is not None:
            del self.jobs[job.id]
        return delta if done else replace(delta, cached=self.cached, prompt_logprobs=prompt_logprobs_of(job))

    def _word(self, job: Generate, done: int) -> Delta:
        word = f"{len(job.prompt)}/{job.sampling.seed}/{done} "
        logprobs = () if job.logprobs is None else (logprob_of(job, done),)
        return Delta(job.id, word, 1, "length" if done + 1 == job.max_tokens else None, logprobs)

    def _scripted(self, job: Generate, done: int) -> Delta:
        text, tokens = self.script[done]
        logprobs = () if job.logprobs is None else tuple(likely(token, -0.5, job.logprobs) for token in tokens)
        return Delta(job.id, text, len(tokens), "stop" if done + 1 == len(self.script) else None, logprobs)


class FakeWorker:
    """Stands where the request queue stands: steps its engine on the event loop until `stalled`."""

    def __init__(self, router: Router, engine: FakeEngine) -> None:
        self.router, self.engine = router, engine
        self.stalled = False
        self._task: asyncio.Task[None] | None = None

    def put(self, message: tuple[int, Job | Inspect | str]) -> None:
        _, content = message
        if isinstance(content, str):
            self.engine.cancel(content)
            return
        if isinstance(content, Inspect):
            if not self.stalled:
                asyncio.get_running_loop().call_soon(self.router.append, [[self.engine.report(content.id)], "OK"])
            return
        self.engine.submit(content)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while not self.engine.idle:
            await asyncio.sleep(0.001)
            if not self.stalled:
                self.router.append([self.engine.step(), "OK"])
