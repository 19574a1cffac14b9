"""An engine without a model and a worker without a process, for tests of the routes and the router."""

import asyncio
import struct
from dataclasses import replace
from typing import Any

import psutil

from app.engine.events import Columns, Decision, Delta, Embedded, Event, Failed, Report, Scored, SlotReport, TokenLogprob
from app.engine.facts import Facts
from app.engine.notices import Waiting
from app.engine.pages import CacheReport, PageCounts
from app.engine.request import Embed, Generate, Inspect, Job, SamplingParams, Score
from app.errors import EngineFailed
from serve.workers.messages import Events, Ready
from serve.workers.router import Router

FACTS = Facts("fake", 64, 2, "none", "float32", "cpu", "fake-base", True, hidden_size=3, text_window=64)
CACHE = CacheReport(4, PageCounts(used=2, shared=1, cached=1, free=29), prompt_tokens=9, found_tokens=4, set_back=1)
HERMES = (  # a chat template with a place for tools, and calls in the form of Hermes
    "{{ bos_token }}{% if tools %}s:{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m['role'][0] + ':' + (m['content'] or '') }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
DEAD_PID = 2**22 + 1  # above the largest possible pid, so no process has it


def answer_of(job: Generate) -> str:
    """The whole answer of the fake engine: max_tokens words, each made of prompt length, seed and index."""
    return "".join(f"{len(job.prompt)}/{job.sampling.seed}/{index} " for index in range(job.max_tokens))


def columns_of(job: Score) -> Columns:
    count = len(job.tokens) - 1
    crossed = (2.0,) * count if job.observe else ()
    top = tuple(tuple((token + place, -token / 100 - place) for place in range(job.top)) for token in job.tokens[1:]) if job.top else ()
    return Columns(tuple(-token / 100 for token in job.tokens[1:]), (1,) * count, (-1.0,) * count, (1.0,) * count, crossed, (), top)


def vector_of(job: Embed) -> tuple[float, float, float]:
    """The fake engine's embedding: number of tokens, last token, and a third that float32 rounds, with the sign of the pooling."""
    return len(job.tokens), job.tokens[-1], 0.1 if job.pooling == "mean" else -0.1


def logprob_of(job: Generate, index: int) -> TokenLogprob:
    """Log-probability of the fake engine's token at `index`: it falls with the index and rises with the seed."""
    token, logprob = 2 + index, -1.0 - index + (job.sampling.seed % 8) / 16
    return token_logprob(token, logprob, job.logprobs or 0)


def token_logprob(token: int, logprob: float, count: int) -> TokenLogprob:
    """A log-probability with `count` top tokens; the token itself is the second most likely."""
    top = ((token + 1, logprob + 0.5), (token, logprob), *((token + 2 + index, logprob - 1 - index) for index in range(count)))
    return TokenLogprob(token, logprob, top[:count])


def prompt_logprobs_of(job: Generate) -> tuple[TokenLogprob, ...]:
    if job.prompt_logprobs is None:
        return ()
    return tuple(token_logprob(token, -token / 100, job.prompt_logprobs) for token in job.prompt[1:])


class FakeEngine:
    """Gives every job one word per step. A text or prompt that contains the token `poison` fails."""

    def __init__(self, poison: int = -1) -> None:
        self.jobs: dict[str, tuple[Job, int]] = {}
        self.submitted: list[Job] = []
        self.cancelled: list[str] = []
        self.poison = poison
        self.queue_steps = 0  # steps that a job waits in the queue before its first word
        self.cached_tokens = 0  # reported as the number of cached prompt tokens
        self.script: list[tuple[str, tuple[int, ...]]] = []  # (text, tokens) of each step, which replace the usual words
        self.texts: tuple[str, ...] = ()  # of the tokens of a script's only step
        self.stop_string: str | None = None  # reported as what ended the script

    @property
    def idle(self) -> bool:
        return not self.jobs

    def submit(self, job: Job) -> None:
        self.submitted.append(job)
        self.jobs[job.id] = (job, len(job.sampled) if isinstance(job, Generate) and job.sampled else -self.queue_steps)

    def cancel(self, id: str) -> bool:
        self.cancelled.append(id)
        return self.jobs.pop(id, None) is not None

    def step(self) -> list[Event]:
        return [self._advance(job, step) for job, step in list(self.jobs.values())]

    def report(self, id: str) -> Report:
        slots = (SlotReport(0, "decode", "a/0", 5, 7, 3, 4, 2), SlotReport(1, "idle", None, 0, 4, 0))
        decision = Decision(1753000000.25, "a/0", 0, "holds its beginning", 0.5, 2, 5)
        return Report(id, slots, (Waiting("b/0", 1, 1.5), Waiting("c/0", 2, None)), 3, (decision,), CACHE)

    def _advance(self, job: Job, step: int) -> Event:
        self.jobs[job.id] = (job, step + 1)
        if step < 0:
            return Waiting(job.id, -step, None if -step == self.queue_steps else -step / 4)
        if isinstance(job, Score):
            del self.jobs[job.id]
            return Failed(job.id, EngineFailed("poisoned")) if self.poison in job.tokens else Scored(job.id, columns_of(job))
        if isinstance(job, Embed):
            del self.jobs[job.id]
            poisoned = self.poison in job.tokens
            return Failed(job.id, EngineFailed("poisoned")) if poisoned else Embedded(job.id, struct.pack("<3f", *vector_of(job)))
        if self.poison in job.prompt:
            del self.jobs[job.id]
            return Failed(job.id, EngineFailed("poisoned"))
        delta = self._scripted(job, step) if self.script else self._word(job, step)
        if delta.finish is not None:
            del self.jobs[job.id]
        return delta if step else replace(delta, cached=self.cached_tokens, prompt_logprobs=prompt_logprobs_of(job))

    def _word(self, job: Generate, step: int) -> Delta:
        word = f"{len(job.prompt)}/{job.sampling.seed}/{step} "
        logprobs = () if job.logprobs is None else (logprob_of(job, step),)
        return Delta(job.id, word, (2 + step,), "length" if step + 1 == job.max_tokens else None, logprobs)

    def _scripted(self, job: Generate, step: int) -> Delta:
        text, tokens = self.script[step]
        logprobs = () if job.logprobs is None else tuple(token_logprob(token, -0.5, job.logprobs) for token in tokens)
        if step + 1 < len(self.script):
            return Delta(job.id, text, tokens, None, logprobs)
        return Delta(job.id, text, tokens, "stop", logprobs, stop_string=self.stop_string, texts=self.texts)


class FakeWorker:
    """Takes the place of a replica's request queue, and steps its engine on the event loop unless `stalled`."""

    def __init__(self, router: Router, engine: FakeEngine) -> None:
        self.router, self.engine = router, engine
        self.stalled = False
        self.pid = 0  # the process it plays: that of the latest message
        self._task: asyncio.Task[None] | None = None

    def put(self, message: tuple[int, Job | Inspect | str]) -> None:
        self.pid, content = message
        if isinstance(content, str):
            self.engine.cancel(content)
            return
        if isinstance(content, Inspect):
            if not self.stalled:
                asyncio.get_running_loop().call_soon(self.router.append, [Events(self.pid, [self.engine.report(content.id)]), "OK"])
            return
        self.engine.submit(content)
        self.start()

    def start(self) -> None:
        """Step the engine until it is idle."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while not self.engine.idle:
            await asyncio.sleep(0.001)
            if not self.stalled:
                self.router.append([Events(self.pid, self.engine.step()), "OK"])


def set_defaults(served: Any, sampling: SamplingParams) -> None:
    """Serve the fake model with these default sampling parameters: its worker reports new facts."""
    served.router.append([Ready(psutil.Process().pid, 0, replace(FACTS, sampling=sampling)), "OK"])
