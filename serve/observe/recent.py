"""The latest values of a measurement, and their percentiles: of every value, not of the buckets of a histogram. Knows no metric names."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 300.0
MAX_VALUES = 1000


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles by the nearest rank: each is one of the `count` values."""

    count: int
    p50: float
    p90: float
    p99: float


class Recent:
    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=MAX_VALUES)  # (time, value)

    def add(self, now_s: float, value: float) -> None:
        self._values.append((now_s, value))

    def summary(self, now_s: float) -> Summary | None:
        """Of the last `WINDOW_S` seconds, at most the last `MAX_VALUES` values; None where there are none."""
        values = sorted(value for at_s, value in self._values if now_s - at_s <= WINDOW_S)
        return Summary(len(values), *(_percentile(values, percent) for percent in (50, 90, 99))) if values else None


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]
