"""A job on its way: to whom it belongs, which worker has it, and what that worker has delivered, so that another one can go on with it.

Sampling is a function of the seed and the position: a worker that reads the prompt and the tokens delivered so far samples the tokens that
the dead one would have sampled next. Knows no processes and no queues.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace

from app.engine.events import Delta, Event, Notice
from app.engine.request import Generate, Job
from serve.workers.fleet import Replica


class JobEvents:
    """The events of one request's jobs. Iterating yields them until every job has ended."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.running = set(ids)  # ids of the jobs that have not ended
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self.running:
            event = await self.queue.get()
            if ends_job(event):
                self.running.discard(event.id)
            yield event


def ends_job(event: Event) -> bool:
    return event.finish is not None if isinstance(event, Delta) else not isinstance(event, Notice)


@dataclass(slots=True, eq=False)
class Flight:
    """A job between its admission and its end."""

    job: Job
    events: JobEvents
    replica: Replica
    pid: int | None = None  # the process that has the job; None: it waits for one
    waits_since_s: float = 0.0  # if it waits: since when, by the event loop's clock
    deaths: int = 0  # workers that died while they had the job
    sampled: list[int] = field(default_factory=list)  # tokens whose text was delivered
    repeated: int = 0  # tokens that the worker will deliver once more
    has_ended: bool = False  # no worker has it, and none will

    def deliver(self, event: Event) -> bool:
        """Pass an event of the job's worker on to its request. False: another worker has delivered the same before, or it has ended."""
        if self.has_ended:
            return False
        if isinstance(event, Delta):
            if self.repeated > 0:
                self.repeated -= len(event.tokens)
                if event.finish is None:
                    return False
                event = replace(event, text="", tokens=(), logprobs=())  # the search took another turn, and ended earlier
            self.sampled += event.tokens
        self.has_ended = ends_job(event)
        self.events.queue.put_nowait(event)
        return True

    def rest(self) -> Job:
        """The job for the next worker. A search, and what is delivered as a whole, is done again."""
        if not isinstance(self.job, Generate) or not self.sampled:
            return self.job
        job = replace(self.job, progress=False)  # the answer has begun
        if job.search is not None:
            self.repeated = len(self.sampled)
            return job
        return replace(job, sampled=tuple(self.sampled), prompt_logprobs=None)
