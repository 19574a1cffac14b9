"""Events that say how a job stands, and change nothing of its result. Knows no jobs and no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that has no slot yet. `position` 1 is the next one; `wait_s` is estimated from recent releases of slots, None before
    there are enough.
    """

    id: str
    position: int
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prompt is read: the first `processed` of its `total` tokens, of which `cached` did not have to be computed. `elapsed_s`
    is the time since the request got its slot.
    """

    id: str
    total: int
    cached: int
    processed: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The job's worker died, or was replaced. Another one goes on with it: the next delta continues the text."""

    id: str
    fingerprint: str | None = None  # of the model's new version, if that is what goes on with it


@dataclass(frozen=True, slots=True)
class SetBack:
    """The request had to give its pages of the cache to others. It waits for a slot, and goes on where it was."""

    id: str


@dataclass(frozen=True, slots=True)
class Loading:
    """The job waits until its model is loaded. `loaded` is the share of the time that has passed if it takes as long as the last time."""

    id: str
    loaded: float | None
