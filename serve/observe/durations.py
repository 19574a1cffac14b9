"""A histogram for values that come ten thousands of times a second. Knows no metric names."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Durations:
    """prometheus_client's own histogram takes locks and walks its buckets for each value; this one counts in plain integers, on the event
    loop, and the buckets are summed up when somebody asks.
    """

    __slots__ = ("_bounds", "_counts", "_total_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total_s = 0.0

    def add(self, seconds: float, times: int) -> None:
        """Count a duration `times` times."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._total_s += seconds * times

    @property
    def total_s(self) -> float:
        return self._total_s

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound as Prometheus writes it, and how many values are at most that."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
