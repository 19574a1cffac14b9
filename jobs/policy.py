"""What is decided from times and counts alone: who may take a task, when to try again, how many workers to wake, what ends a batch.

Pure functions. The table (`jobs.leases`), the workers and the simulation of a thousand of them (`jobs.simulation`) use the same ones.
`is_due` takes columns of the table as well as numbers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_ATTEMPTS = 5  # deaths of workers over a task without a line written between them
MAX_TRIES = 3  # of a line that fails or takes too long
MAX_PAUSE_S = 60.0
MAX_BEAT_S = 5.0
TASK_GAP_S = 60.0  # by how much each task of a batch ranks behind the one before it
SWEEP_S = 1.0  # between two sweeps
TURN_S = 5.0  # how long the turn to sweep lasts; the one who has it renews it at every sweep
MAX_WAKES = 256  # messages that may wait at the broker
GROUP_S = 0.2  # lines that end within this time are committed together
BUSY = frozenset({429, 502, 503, 504})  # of a server that will answer later
FAILED = frozenset({408, 500})  # may be better the next time


def is_due(due: Any, now: float) -> Any:
    """Whether a task may be taken: it waits, or the lease of the worker that took it has ended. Never, once it is done."""
    return due <= now


def lease_end(now: float, lease_s: float) -> float:
    return now + lease_s


def beat_s(lease_s: float) -> float:
    """Seconds between two signs of life: two may be lost before the lease ends."""
    return min(lease_s / 3, MAX_BEAT_S)


def rank(created: float, n: int) -> float:
    """Tasks are taken in this order. A later batch is served beside a long earlier one, and neither can starve."""
    return created + n * TASK_GAP_S


def gives_up(attempts: int) -> bool:
    """Whether a task is taken no more, as it kills its workers."""
    return attempts > MAX_ATTEMPTS


def wakes(due: int, queued: int) -> int:
    """How many messages to send, where `due` tasks may be taken and `queued` messages wait. Who loses one is woken by the next sweep."""
    return max(min(due, MAX_WAKES) - queued, 0)


def lines_at_once(wanted: int, slots: Iterable[int]) -> int:
    """How many lines may be in flight at models with so many slots: one slot of each is left to people."""
    return max(min([wanted, *(each - 1 for each in slots)]), 1)


def pause_s(tries: int, retry_after_s: float | None = None) -> float:
    """Before try number `tries` + 1: what the server asks for, or twice as long each time."""
    return min(max(2.0 ** min(tries - 1, 10), retry_after_s or 0.0), MAX_PAUSE_S)


def tries_again(status: int | None, tries: int) -> bool:
    """Whether a line is sent again after `status`; None: no answer within its time. A busy server is asked until the batch expires."""
    if status in BUSY:
        return True
    return (status is None or status in FAILED) and tries < MAX_TRIES


@dataclass(frozen=True, slots=True)
class Part:
    """Lines of a file that one worker takes at a time."""

    first_line: int
    lines: int
    first_byte: int
    bytes: int


def divide(ends: Iterable[int], lines_per_task: int) -> Iterator[Part]:
    """Parts of a file whose lines end at these bytes."""
    first_line = first_byte = 0
    count, last = 0, 0
    for count, end in enumerate(ends, 1):
        last = end
        if count % lines_per_task == 0:
            yield Part(first_line, count - first_line, first_byte, end - first_byte)
            first_line, first_byte = count, end
    if count > first_line:
        yield Part(first_line, count - first_line, first_byte, last - first_byte)


def retry_after_s(header: str | None) -> float | None:
    """The header Retry-After in seconds; None where it is missing, or a date."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
