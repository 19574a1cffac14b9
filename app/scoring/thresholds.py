"""The thresholds and probabilities that a calibration holds for one method and one length bucket, as validated values.

Knows no file and no model. Field names are the keys of calibration files, so they do not change.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import InvalidRequest
from app.schemas import Direction, Method

DEFAULT_TARGET_FPR = 0.01
DIRECTIONS: dict[Method, Direction] = {  # whether lower or higher scores look more like a machine's writing
    "combined": "higher",
    "binoculars": "lower",
    "likelihood_ratio": "higher",
    "fast_detect": "higher",
    "perplexity": "lower",
    "log_rank": "lower",
}


def sign_of(method: Method) -> int:
    """The factor that makes higher scores of the method look more like a machine's."""
    return -1 if DIRECTIONS[method] == "lower" else 1


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Threshold(FrozenModel):
    """A score, and the share of `n` texts of the opposite class that lie beyond it: texts that it would classify wrongly.

    `target` is the error rate it was chosen for, `measured` the rate on the texts it was chosen on, `low` to `high` the exact 95% interval
    of that rate (Clopper and Pearson, 1934). `found`: the share of the texts of its own class that lie beyond it. A published threshold has
    only a `value`, and a `target` if its authors gave one.
    """

    value: float
    target: float | None = Field(None, gt=0, lt=1)
    measured: Share | None = None
    low: Share | None = None
    high: Share | None = None
    n: int | None = Field(None, ge=1)
    found: Share | None = None

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        known = [each for each in (self.low, self.measured, self.high) if each is not None]
        if known != sorted(known):
            raise ValueError("low, measured and high must not fall")
        return self


class Histogram(FrozenModel):
    """How many human and machine texts score from `edges[i]` up to `edges[i + 1]`; the outermost bins also count the texts beyond them."""

    edges: tuple[float, ...] = Field(min_length=2)
    human: tuple[Count, ...]
    machine: tuple[Count, ...]

    @model_validator(mode="after")
    def _check_bins(self) -> Self:
        if not len(self.human) == len(self.machine) == len(self.edges) - 1:
            raise ValueError("human and machine need one count for each bin, one fewer than edges")
        if any(not after > before for before, after in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("the edges of a histogram must rise strictly")
        return self


class ProbabilityMap(FrozenModel):
    """Maps a score to the probability that a machine wrote the text, for a prior of one half.

    Piecewise linear between the points of `score`, which reach from the lowest to the highest score of the calibration's texts. `low` and
    `high` are the 2.5% and 97.5% percentiles of maps fitted to bootstrap samples of groups; `low` is at most 1 - 3/n and `high` at least
    3/n, n being the texts of the smaller class.
    `brier` and `log_loss` (nats) are out of fold, with groups kept whole; None if there were too few groups.
    """

    kind: Literal["isotonic", "logistic"]
    score: tuple[float, ...] = Field(min_length=2)
    p: tuple[Share, ...]
    low: tuple[Share, ...]
    high: tuple[Share, ...]
    brier: float | None
    log_loss: float | None

    @model_validator(mode="after")
    def _check_monotone(self) -> Self:
        if any(len(column) != len(self.score) for column in (self.p, self.low, self.high)):
            raise ValueError("score, p, low and high must have the same length")
        if any(not after > before for before, after in zip(self.score, self.score[1:], strict=False)):
            raise ValueError("the scores of a probability map must rise strictly")
        if list(self.p) not in (sorted(self.p), sorted(self.p, reverse=True)):
            raise ValueError("the probabilities of a probability map must be monotone")
        if not all(low <= p <= high for low, p, high in zip(self.low, self.p, self.high, strict=True)):
            raise ValueError("p must lie from low to high at each score")
        return self

    def interpolate(self, value: float) -> tuple[float, float, float]:
        """The probability at a score and its interval `(p, low, high)`. A score beyond either end gets that end's values."""
        last = len(self.score) - 1
        right = min(max(bisect_right(self.score, value), 1), last)
        left = right - 1
        share = (value - self.score[left]) / (self.score[right] - self.score[left])
        share = min(1.0, max(0.0, share))
        p, low, high = (column[left] + share * (column[right] - column[left]) for column in (self.p, self.low, self.high))
        return p, low, high


class Bucket(FrozenModel):
    """The calibration for texts with `min_tokens` <= scored tokens < `max_tokens` (None: no upper limit).

    `machine`: thresholds of a machine verdict; few human texts lie beyond them, and `target` is a false-positive rate.
    `human`: thresholds of a human verdict; few machine texts lie beyond them, on the other side.
    `histogram`: None in files made before it was kept.
    """

    min_tokens: int = Field(ge=0)
    max_tokens: int | None
    n_human: Count | None
    n_machine: Count | None
    machine: tuple[Threshold, ...] = Field(min_length=1)
    human: tuple[Threshold, ...]
    chance: ProbabilityMap | None
    histogram: Histogram | None = None

    @model_validator(mode="after")
    def _check_bucket(self) -> Self:
        if self.max_tokens is not None and self.max_tokens <= self.min_tokens:
            raise ValueError("max_tokens must be above min_tokens")
        for side, thresholds in (("machine", self.machine), ("human", self.human)):
            if len({threshold.target for threshold in thresholds}) < len(thresholds):
                raise ValueError(f"{side}: two thresholds have the same target")
        return self

    @property
    def name(self) -> str:
        return f"{self.min_tokens}+" if self.max_tokens is None else f"{self.min_tokens}-{self.max_tokens}"

    def is_outside(self, value: float, lower: bool) -> bool:
        """Whether the score is more human-like than that of every text of the calibration. `lower`: lower scores look like a machine's."""
        if self.chance is None:
            return False
        return value > self.chance.score[-1] if lower else value < self.chance.score[0]

    def threshold(self, target: float | None) -> Threshold:
        """The machine threshold for a target false-positive rate; without one, that of the rate nearest to 1%, or
        the one that there is, where no rate was published with it.

        Raises `InvalidRequest` for a rate that this bucket has no threshold for.
        """
        calibrated = [threshold for threshold in self.machine if threshold.target is not None]
        if target is None:
            nearest = min(calibrated, key=lambda threshold: abs(math.log((threshold.target or 1) / DEFAULT_TARGET_FPR)), default=None)
            return nearest or self.machine[0]
        for threshold in calibrated:
            if threshold.target is not None and math.isclose(threshold.target, target):
                return threshold
        rates = ", ".join(f"{threshold.target:g}" for threshold in calibrated)
        raise InvalidRequest(
            f"target_fpr {target:g} is not calibrated for texts of {self.name} tokens; calibrated rates are {rates}", param="target_fpr"
        )


class MethodCalibration(FrozenModel):
    """The calibration of one method: which direction of its scores looks like a machine's, and one bucket for each range of lengths."""

    direction: Literal["lower", "higher"]
    buckets: tuple[Bucket, ...]

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        for number, (before, after) in enumerate(zip(self.buckets, self.buckets[1:], strict=False)):
            if before.max_tokens is None or before.max_tokens > after.min_tokens:
                raise ValueError(f"buckets.{number + 1}: min_tokens must be at least max_tokens of the bucket before it")
        return self

    @model_validator(mode="after")
    def _check_direction(self) -> Self:
        """Of thresholds and probabilities."""
        sign = -1 if self.direction == "lower" else 1
        for number, bucket in enumerate(self.buckets):
            for side, thresholds, factor in (("machine", bucket.machine, sign), ("human", bucket.human, -sign)):
                if not _is_stricter_at_lower_rates(thresholds, factor):
                    raise ValueError(
                        f"buckets.{number}.{side}: the threshold of a lower target must not be less strict than that of a higher one"
                    )
            if bucket.chance and [sign * p for p in bucket.chance.p] != sorted(sign * p for p in bucket.chance.p):
                raise ValueError(f"buckets.{number}.chance.p: must {'fall' if sign < 0 else 'rise'}, as direction is {self.direction}")
        return self


def _is_stricter_at_lower_rates(thresholds: Sequence[Threshold], sign: int) -> bool:
    """`sign` makes higher values stricter."""
    values = [sign * each.value for each in sorted(thresholds, key=lambda each: -(each.target or 0)) if each.target is not None]
    return values == sorted(values)
