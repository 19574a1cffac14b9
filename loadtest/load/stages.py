"""Plans a load test: its stages, and when requests arrive in an open loop. Pure: knows no clock and no server."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One level of load. `level` is a number of users in a closed loop, or arrivals per second in an open loop (`opened`).

    `seconds` is its duration with the warm-up; None: it lasts until the run is stopped.
    """

    number: int
    level: float
    opened: bool
    seconds: float | None
    warm_up_s: float

    @property
    def name(self) -> str:
        return f"{self.level:g}/s" if self.opened else f"{self.level:g} user{'' if self.level == 1 else 's'}"

    def is_warm_up(self, elapsed_s: float) -> bool:
        """Whether a request sent `elapsed_s` after the start of the stage is left out of the statistics."""
        return elapsed_s < self.warm_up_s


def plan_stages(levels: Sequence[float], opened: bool, seconds: float, warm_up_s: float) -> list[Stage]:
    """One stage for each level. Each has its own warm-up and is then measured for `seconds`."""
    return [Stage(number, level, opened, warm_up_s + seconds, warm_up_s) for number, level in enumerate(levels)]


def stage_at(plan: Sequence[Stage], elapsed_s: float) -> Stage | None:
    """The stage that runs `elapsed_s` after the start of the plan, whose stages follow one another; None after the last one."""
    for stage in plan:
        if stage.seconds is None or elapsed_s < stage.seconds:
            return stage
        elapsed_s -= stage.seconds
    return None


def poisson_times(rng: random.Random, rate: float, seconds: float) -> list[float]:
    """Times of a Poisson process between 0 and `seconds`: the gaps are exponential with a mean of 1 / `rate`."""
    times, at_s = [], rng.expovariate(rate)
    while at_s < seconds:
        times.append(at_s)
        at_s += rng.expovariate(rate)
    return times


def arrival_times(stage: Stage, seed: int) -> list[float]:
    """When requests arrive in an open-loop stage, in seconds from its start; the same for the same seed."""
    return poisson_times(random.Random(f"{seed}/arrivals/{stage.number}"), stage.level, stage.seconds or 0.0)
