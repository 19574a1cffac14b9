"""What a calibration knows of one method: borders and a probability for each length. Values that check themselves; no file, no model."""

import math
from bisect import bisect_right
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import InvalidRequest
from app.schemas import Direction, Method

USUAL_TARGET = 0.01
DIRECTIONS: dict[Method, Direction] = {  # which way a machine's texts lie
    "binoculars": "lower",
    "likelihood_ratio": "higher",
    "fast_detect": "higher",
    "perplexity": "lower",
    "log_rank": "lower",
}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Border(Part):
    """A score and the share of `n` texts of the other side that lie beyond it, with the exact 95% interval (Clopper and Pearson, 1934).

    What was published without its data has no numbers but the score, and a target where one was named.
    """

    value: float
    target: float | None = Field(None, gt=0, lt=1)
    measured: float | None = Field(None, ge=0, le=1)
    low: float | None = Field(None, ge=0, le=1)
    high: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)


class Chance(Part):
    """The probability that a machine wrote the text, had there been as many texts of machines as of humans: linear between `score`s, which
    reach from the lowest of all texts to the highest.

    `low` and `high`: 2.5% and 97.5% of maps fitted to groups of texts drawn with replacement, never narrower than three texts in n.
    `brier` and `log_loss` (nats) are out of fold, groups kept whole; None where there were too few groups.
    """

    kind: Literal["isotonic", "logistic"]
    score: tuple[float, ...] = Field(min_length=2)
    p: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    brier: float | None
    log_loss: float | None

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        if any(len(column) != len(self.score) for column in (self.p, self.low, self.high)):
            raise ValueError("score, p, low and high must have one length")
        if any(not after > before for before, after in zip(self.score, self.score[1:], strict=False)):
            raise ValueError("the scores of a probability map must rise")
        if list(self.p) not in (sorted(self.p), sorted(self.p, reverse=True)):
            raise ValueError("a probability map must be monotone")
        return self

    def at(self, value: float) -> tuple[float, float, float]:
        """Probability and its interval; beyond the ends as at the ends."""
        last = len(self.score) - 1
        right = min(max(bisect_right(self.score, value), 1), last)
        left = right - 1
        share = (value - self.score[left]) / (self.score[right] - self.score[left])
        share = min(1.0, max(0.0, share))
        p, low, high = (column[left] + share * (column[right] - column[left]) for column in (self.p, self.low, self.high))
        return p, low, high


class Bucket(Part):
    """Texts of `min_tokens` to below `max_tokens` scored tokens (no end: None).

    `machine`: borders that few human texts lie beyond, towards the machine's side. `human`: borders that few machine texts lie beyond.
    """

    min_tokens: int = Field(ge=0)
    max_tokens: int | None
    n_human: int | None
    n_machine: int | None
    machine: tuple[Border, ...] = Field(min_length=1)
    human: tuple[Border, ...]
    chance: Chance | None

    @property
    def name(self) -> str:
        return f"{self.min_tokens}+" if self.max_tokens is None else f"{self.min_tokens}-{self.max_tokens}"

    def outside(self, value: float, lower: bool) -> bool:
        """Whether no text of the calibration lies so far on the human's side."""
        if self.chance is None:
            return False
        return value > self.chance.score[-1] if lower else value < self.chance.score[0]

    def border(self, target: float | None) -> Border:
        """Raises `InvalidRequest` for a rate that these texts do not support."""
        known = [border for border in self.machine if border.target is not None]
        if target is None:
            return min(known, key=lambda border: abs(math.log((border.target or 1) / USUAL_TARGET)))
        found = next((border for border in known if border.target is not None and math.isclose(border.target, target)), None)
        if found is None:
            rates = ", ".join(f"{border.target:g}" for border in known)
            raise InvalidRequest(
                f"target_fpr {target:g} is not calibrated for texts of {self.name} tokens; calibrated are {rates}", param="target_fpr"
            )
        return found


class Scale(Part):
    """One method: which way a machine's texts lie, and what was found for each length."""

    direction: Literal["lower", "higher"]
    buckets: tuple[Bucket, ...]
