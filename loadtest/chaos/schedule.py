"""What is done to the server, and when. Pure."""

from dataclasses import dataclass
from typing import Literal

Act = Literal["kill", "kill on a full disk", "hang", "restart", "start on a full disk", "leave", "burst", "redis stops", "redis starts"]
FULL_MINUTES = 10  # the counts below are for a run of this length; a shorter one has fewer of each, but at least one
FULL_COUNTS = {"kill": 20, "hang": 2, "restart": 3, "leave": 10, "burst": 3}
LEAVERS = 20  # clients of one wave
RESTARTS_END = 0.4  # share of the run after which the server is restarted no more, so that its memory can be watched
LAST = 0.95  # share of the run after which nothing is done


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    act: Act


def scaled(minutes: float) -> dict[str, int]:
    """How often each thing is done in a run of so many minutes."""
    return {name: max(1, round(count * minutes / FULL_MINUTES)) for name, count in FULL_COUNTS.items()}


def plan(minutes: float, redis: bool = False) -> list[Event]:
    """The events in order of time. One of the restarts and one more kill find the disk of the server's log full."""
    number, whole_s = scaled(minutes), 60 * minutes
    events = [Event(at, "kill") for at in spread(number["kill"], 0.0, LAST * whole_s)]
    events += [Event(at, "hang") for at in spread(number["hang"], RESTARTS_END * whole_s, LAST * whole_s)]
    restarts = spread(number["restart"], 0.0, RESTARTS_END * whole_s)
    events += [Event(at, "restart" if index else "start on a full disk") for index, at in enumerate(restarts)]
    events.append(Event(0.5 * (RESTARTS_END + LAST) * whole_s, "kill on a full disk"))
    events += [Event(at, "leave") for at in spread(number["leave"], 0.0, LAST * whole_s)]
    events += [Event(at, "burst") for at in spread(number["burst"], 0.0, LAST * whole_s)]
    if redis:
        events += [Event(0.55 * whole_s, "redis stops"), Event(0.75 * whole_s, "redis starts")]
    return sorted(events, key=lambda event: event.at_s)


def spread(count: int, start_s: float, end_s: float) -> list[float]:
    """So many times between the two, each in the middle of an equal part."""
    part = (end_s - start_s) / count
    return [start_s + part * (index + 0.5) for index in range(count)]
