"""The replicas of one model: how many jobs they may hold together, and which of them gets the next ones. Knows no other model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from app.engine.request import Facts, Generate, Inspect, Job
from app.errors import InvalidRequest, NotReady, QueueFull
from serve.workers.affinity import Affinity


@dataclass(slots=True, eq=False)
class Replica:
    """A copy of a model in a process of its own. `number` is its place among all replicas of all models."""

    number: int
    model: str
    queue: Any = None  # to its worker; set by the spec, before the API process is forked
    worker: psutil.Process | None = None
    facts: Facts | None = None
    load: int = 0  # jobs in flight

    def send(self, content: Job | Inspect | str) -> None:
        assert self.worker is not None
        self.queue.put((self.worker.pid, content))


class Fleet:
    """`max_waiting` jobs beyond the slots may be in flight on it, whatever the other models do."""

    def __init__(self, model: str, replicas: Sequence[Replica], max_waiting: int) -> None:
        self.model = model
        self.replicas = replicas
        self.max_waiting = max_waiting
        self._affinity = Affinity()

    @property
    def alive(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.worker is not None]

    @property
    def load(self) -> int:
        return sum(replica.load for replica in self.replicas)

    @property
    def facts(self) -> Facts:
        """All replicas serve the same. Raises `NotReady` until the first of them has loaded it."""
        facts = next((replica.facts for replica in self.replicas if replica.facts is not None), None)
        if facts is None:
            raise NotReady(f"the model '{self.model}' is still loading; /ready says when it is served")
        return facts

    def replica(self, place: int) -> Replica:
        """Raises `InvalidRequest` where there is none, `NotReady` where it has no worker."""
        if not 0 <= place < len(self.replicas):
            raise InvalidRequest(f"there is no replica {place} of '{self.model}': they are 0..{len(self.replicas) - 1}", param="replica")
        if self.replicas[place].worker is None:
            raise self._gone()
        return self.replicas[place]

    @property
    def room(self) -> int:
        """Jobs that may be in flight."""
        return self.facts.slots * len(self.alive) + self.max_waiting

    def check(self, count: int) -> None:
        """Raises `InvalidRequest` for so many jobs at once as could never be in flight."""
        if self.alive and count > self.room:
            raise InvalidRequest(f"{count} answers or texts in one request, but at most {self.room} may be in flight: send fewer")

    def admit(self, jobs: Sequence[Job]) -> Replica:
        """Where the jobs go. Raises `NotReady`, `QueueFull`, or `InvalidRequest` for what can never fit."""
        alive = self.alive
        if not alive:
            raise self._gone()
        self.check(len(jobs))
        if self.load + len(jobs) > self.room:
            raise QueueFull(f"{self.load} of at most {self.room} answers and texts of '{self.model}' are in flight; try again in a moment")
        return alive[0] if len(alive) == 1 else self._choose(alive, jobs[0] if jobs else None)

    def _choose(self, alive: list[Replica], job: Job | None) -> Replica:
        """The replica that holds the conversation unless it has a whole round of slots more to do, else the least loaded one."""
        least = min(alive, key=lambda replica: replica.load)
        if not isinstance(job, Generate):
            return least
        home = self._affinity.home(job.prompt)
        chosen = next((replica for replica in alive if replica.number == home), least)
        if chosen.load > least.load + self.facts.slots:
            chosen = least
        self._affinity.note(job.prompt, chosen.number)
        return chosen

    def _gone(self) -> NotReady:
        return NotReady(f"the model '{self.model}' is not loaded at the moment; /ready says when")
