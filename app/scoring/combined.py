"""`combined`: one score from several statistics of a text's tokens, by weights that a calibration has learned. Plain arithmetic.

A chat model writes what is likely; a model sampled as it is does not, but stays closer to what another model expects than people do. So
there is a question for each kind of writer, a logistic regression of its own, and the score is that of a mixture of them:
log(mean of exp(log-odds)). It grows with each question's log-odds. With an observer there is a third one: which of the two models a text
follows, however it was sampled.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from app.scoring.features import OBSERVED, STATISTICS
from app.scoring.thresholds import FrozenModel

QuestionName = Literal["likely", "drawn", "pair"]
Values = Mapping[str, float]
LIMIT = 4.0  # spreads: a statistic that no text of the calibration had decides no more than the most unusual of those


class Term(FrozenModel):
    """`weight * (value - centre) / spread`, clipped to `limit` spreads on both sides, of one statistic: a part of the log-odds."""

    statistic: str
    centre: float
    spread: float = Field(gt=0)
    weight: float

    @field_validator("statistic")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in STATISTICS:
            raise ValueError(f"{name} is none of {', '.join(STATISTICS)}")
        return name

    def share(self, values: Values) -> float:
        deviation = (values[self.statistic] - self.centre) / self.spread
        return self.weight * min(max(deviation, -LIMIT), LIMIT)


class Question(FrozenModel):
    """`likely`: is the text too likely for a person? `drawn`: is it too close to what the model itself would draw? `pair`: is it likelier
    to the model than to its observer?
    """

    name: QuestionName
    intercept: float
    terms: tuple[Term, ...] = Field(min_length=1)

    def log_odds(self, values: Values) -> float:
        return self.intercept + sum(term.share(values) for term in self.terms)


class CombinedModel(FrozenModel):
    questions: tuple[Question, ...] = Field(min_length=1)

    @property
    def needs_observer(self) -> bool:
        return any(term.statistic in OBSERVED for question in self.questions for term in question.terms)

    def score(self, values: Values) -> float:
        """Higher is more like a machine's writing."""
        odds = [question.log_odds(values) for question in self.questions]
        top = max(odds)
        return top + math.log(sum(math.exp(each - top) for each in odds) / len(odds))

    def leading(self, values: Values) -> Question:
        """The question that a machine's authorship is likelier by."""
        return max(self.questions, key=lambda question: question.log_odds(values))
