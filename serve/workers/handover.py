"""What becomes of the jobs of a version of a model that is loaded, replaced or unloaded. Knows no processes."""

from app.engine.notices import Interrupted, Loading
from app.engine.request import Generate, Job
from app.errors import LitmusError, NotReady
from serve.workers.fleet import Fleet
from serve.workers.router import Router

UNLOADED = "the worker was unloaded before it answered; ask again in a moment"


def move_on(router: Router, old: Fleet, new: Fleet | None, error: LitmusError) -> None:
    """Send what is left of a version's jobs to another one, and let fail with `error` what that one could not go on with."""
    for flight in router.unfinished(old):
        if new is None or not new.alive or not can_go_on(flight.job, new, len(flight.sampled)):
            router.fail([flight], error)
            continue
        router.cancel(flight)
        flight.events.queue.put_nowait(Interrupted(flight.job.id, new.facts_of(flight.job.adapter).fingerprint))
        router.move(flight, min(new.alive, key=lambda replica: replica.load))


def can_go_on(job: Job, fleet: Fleet, sampled: int = 0) -> bool:
    """Whether another version of a model, with the same tokens, can go on with a job of which so many tokens are delivered. What is
    delivered as a whole, by a search or of a text, would be told as the work of the wrong version.
    """
    if job.adapter is not None and job.adapter not in fleet.adapters:
        return False
    if not isinstance(job, Generate) or job.search is not None:
        return False
    return len(job.prompt) + (sampled + 1 if job.unlimited else job.max_tokens) <= fleet.facts.context


def release(router: Router, fleet: Fleet) -> None:
    """Forget the workers of a version, which are about to end. None of its jobs may be left."""
    for replica in fleet.replicas:
        replica.worker = None
        router.observer.worker_stopped(replica.number)
        router.reports.fail(NotReady(UNLOADED), replica)


def tell_loading(router: Router, fleet: Fleet, loaded: float | None) -> None:
    for flight in router.waiting(fleet):
        flight.events.queue.put_nowait(Loading(flight.job.id, loaded))
