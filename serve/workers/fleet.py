"""The replicas of one version of a model: how many jobs they may hold together, and which replica gets the next ones.

Knows no other model, and no other version.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal
from weakref import WeakSet

import psutil

from app.engine.facts import AdapterFacts, Facts
from app.engine.request import Generate, Inspect, Job
from app.errors import InvalidRequest, NotReady, QueueFull
from app.settings import QueueSettings
from serve.workers.affinity import Affinity
from serve.workers.messages import LoadAdapter, UnloadAdapter
from serve.workers.progress import SharedProgress

Standing = Literal["served", "next", "previous"]
MAX_PORTION = 64  # jobs that one request with many texts has in flight at a time


@dataclass(slots=True, eq=False)
class Replica:
    """A copy of a model in a process of its own. `number` is its own for as long as the server runs."""

    number: int
    model: str
    queue: Any = None  # to its worker; set before the API process is forked, or by the main process's message `Started`
    worker: psutil.Process | None = None  # None while the model is loading, and after the process died
    facts: Facts | None = None
    load: int = 0  # jobs in flight
    progress: SharedProgress | None = None  # of the start of its worker
    silent_rounds: int = 0  # looks at its worker since the worker was ready or gave a beat

    def send(self, content: Job | Inspect | LoadAdapter | UnloadAdapter | str) -> None:
        """Queue a message for the worker; a string is the id of a job to cancel."""
        assert self.worker is not None
        self.queue.put((self.worker.pid, content))


class Fleet:
    """Admits jobs to the replicas of one model: as many as their slots hold, and `max_waiting` more, of `max_waiting_tokens` at most."""

    def __init__(self, model: str, replicas: Sequence[Replica], queue_settings: QueueSettings) -> None:
        self.model = model
        self.replicas = replicas
        self.queue_settings = queue_settings
        self.pins: WeakSet[object] = WeakSet()  # requests that are being prepared for this version, each as long as it lives
        self.used_s = time.monotonic()  # when it last got a job
        self.wake: Callable[[], None] | None = None  # loads it again: it was unloaded because it was idle
        self.loading = False  # it was woken
        self.standing: Standing = "served"  # among the versions of its model: `served` gets the new jobs
        self.adapters: dict[str, AdapterFacts] = {}  # that its workers serve, by name
        self.problems: dict[str, str] = {}  # why an adapter could not be loaded into a worker that started, by name
        self._tokens: deque[int] = deque()  # of each job in flight, the oldest first
        self._affinity = Affinity()

    @property
    def alive(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.worker is not None]

    @property
    def load(self) -> int:
        return sum(replica.load for replica in self.replicas)

    @property
    def facts(self) -> Facts:
        """All replicas have the same, but a context that the memory limits may be shorter in one of them; then all have that. While the
        model is unloaded, it may be as long as the model's own: memory may have become free. Raises `NotReady` until the first replica has
        loaded the model.
        """
        known = [replica.facts for replica in self.replicas if replica.facts is not None]
        if not known:
            raise NotReady(f"the model '{self.model}' is still loading; GET /ready says when it is served")
        facts = min(known, key=lambda facts: facts.context)
        is_open = self.wake is not None and not self.alive and facts.context_setting is None
        return replace(facts, context=max(facts.context, facts.largest_context)) if is_open else facts

    def facts_of(self, adapter: str | None) -> Facts:
        """The facts of one of its adapters, of the model itself for None. Raises `NotReady`."""
        if adapter is None:
            return self.facts
        if adapter not in self.adapters:
            raise NotReady(f"the adapter '{adapter}' of '{self.model}' is still loading; ask again in a moment")
        return self.facts.of(self.adapters[adapter])

    def replica(self, index: int) -> Replica:
        """Raises `InvalidRequest` for an index out of range, `NotReady` for a replica without a worker."""
        if not 0 <= index < len(self.replicas):
            raise InvalidRequest(f"'{self.model}' has no replica {index}; its replicas are 0..{len(self.replicas) - 1}", param="replica")
        if self.replicas[index].worker is None:
            raise self._not_loaded()
        return self.replicas[index]

    @property
    def max_jobs(self) -> int:
        """Jobs that may be in flight."""
        replicas = self.alive or (self.replicas if self.wake is not None else [])
        return self.facts.slots * len(replicas) + self.queue_settings.max_waiting

    @property
    def status(self) -> Literal["ready", "loading", "unloaded"]:
        return "ready" if self.alive else "unloaded" if self.wake is not None and not self.loading else "loading"

    @property
    def capacity(self) -> int:
        """`max_jobs`; before the model has loaded, what may wait for it."""
        return self.max_jobs if any(replica.facts is not None for replica in self.replicas) else self.queue_settings.max_waiting

    def portion(self, tokens: Sequence[int]) -> int:
        """How many of the next jobs of a long request, of so many tokens each, may be in flight together: at least one, and never so many
        that the request fills the queue.
        """
        tokens = tokens[: max(1, min(MAX_PORTION, (self.max_jobs - self.load) // 2))]
        most = self.queue_settings.max_waiting_tokens // 4
        return max(1, sum(total <= most for total in accumulate(tokens)))

    def check_job_count(self, count: int, param: str | None = None) -> None:
        """Raises `InvalidRequest`, naming `param`, if `count` jobs of one request could never be in flight together."""
        if (self.alive or self.wake is not None) and count > self.max_jobs:
            message = f"{count} answers or texts in one request, but at most {self.max_jobs} may be in flight: send fewer"
            raise InvalidRequest(message, param=param)

    def admit(self, jobs: Sequence[Job]) -> Replica:
        """The replica that gets the jobs. One without a worker, if the model is loaded on demand: then they wait for it.

        Raises `NotReady`, `QueueFull`, or `InvalidRequest` for more jobs than can ever be admitted.
        """
        self.used_s = time.monotonic()
        alive = self.alive or (list(self.replicas) if self.wake is not None else [])
        if not alive:
            raise self._not_loaded()
        self.check_job_count(len(jobs))
        if self.load + len(jobs) > self.max_jobs:
            raise QueueFull(
                f"{self.load} of at most {self.max_jobs} answers and texts of '{self.model}' are in flight "
                "(its slots and queue.max_waiting); try again in a moment"
            )
        self._admit_tokens([tokens_of(job) for job in jobs])
        if self.wake is not None:
            self.wake()
        return alive[0] if len(alive) == 1 else self._choose(alive, jobs[0] if jobs else None)

    def _admit_tokens(self, tokens: list[int]) -> None:
        """Raises `QueueFull` if too many tokens would wait. The oldest jobs are taken to be those that have ended and those with slots."""
        while len(self._tokens) > self.load:
            self._tokens.popleft()
        waiting = [*self._tokens, *tokens][self.facts.slots * len(self.alive) :]
        most = self.queue_settings.max_waiting_tokens
        if self.load and sum(waiting) > most:
            raise QueueFull(
                f"{sum(waiting)} tokens of prompts and texts of '{self.model}' would wait, at most {most} may "
                "(queue.max_waiting_tokens); try again in a moment, or send less at a time"
            )
        self._tokens.extend(tokens)

    def _choose(self, alive: list[Replica], job: Job | None) -> Replica:
        """The replica that caches the conversation, unless it has over one full set of slots more jobs than the least loaded replica;
        else the least loaded one.
        """
        least_loaded = min(alive, key=lambda replica: replica.load)
        if not isinstance(job, Generate):
            return least_loaded
        cached_on = self._affinity.find(job.prompt, job.adapter)
        chosen = next((replica for replica in alive if replica.number == cached_on), least_loaded)
        if chosen.load > least_loaded.load + self.facts.slots:
            chosen = least_loaded
        self._affinity.remember(job.prompt, chosen.number, job.adapter)
        return chosen

    def _not_loaded(self) -> NotReady:
        if self.wake is not None:
            return NotReady(f"the model '{self.model}' was unloaded because it was idle; the next request that uses it loads it")
        return NotReady(f"the model '{self.model}' is not loaded at the moment; GET /ready says when it is served")


def tokens_of(job: Job) -> int:
    """The tokens that have to be read before the job can be answered."""
    return len(job.prompt) if isinstance(job, Generate) else len(job.tokens)
