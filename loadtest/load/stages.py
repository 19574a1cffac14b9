"""What is offered when: stages of a closed loop (users) or of an open one (arrivals a second). Pure: knows no clock, no server."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """`level` users who wait for their answers, or `level` arrivals a second that wait for nobody. No `seconds`: until it is stopped."""

    number: int
    level: float
    opened: bool
    seconds: float | None
    warm_up_s: float

    @property
    def name(self) -> str:
        return f"{self.level:g}/s" if self.opened else f"{self.level:g} user{'' if self.level == 1 else 's'}"

    def warming(self, elapsed_s: float) -> bool:
        """Whether a request that leaves so long after the stage began is left out of the statistics."""
        return elapsed_s < self.warm_up_s


def stages(levels: Sequence[float], opened: bool, seconds: float, warm_up_s: float) -> list[Stage]:
    """One stage for each level; each warms up for itself and is then measured for `seconds`."""
    return [Stage(number, level, opened, warm_up_s + seconds, warm_up_s) for number, level in enumerate(levels)]


def stage_at(plan: Sequence[Stage], elapsed_s: float) -> Stage | None:
    """Of stages one behind the other, the one that runs after `elapsed_s`; None when all are over."""
    for stage in plan:
        if stage.seconds is None or elapsed_s < stage.seconds:
            return stage
        elapsed_s -= stage.seconds
    return None


def poisson(draw: random.Random, rate: float, seconds: float) -> list[float]:
    """Times of arrival from 0 to `seconds`: the gaps between them are exponential, 1 / `rate` in the mean."""
    times, at_s = [], draw.expovariate(rate)
    while at_s < seconds:
        times.append(at_s)
        at_s += draw.expovariate(rate)
    return times


def arrivals(stage: Stage, seed: int) -> list[float]:
    """Of an open stage, in seconds from its beginning; the same for the same seed."""
    return poisson(random.Random(f"{seed}/arrivals/{stage.number}"), stage.level, stage.seconds or 0.0)
