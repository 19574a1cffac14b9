"""The scoring methods: arithmetic on the columns of a text. No torch, no model."""

import math
from collections.abc import Callable

from app.engine.events import Columns
from app.schemas import Method
from app.scoring.combined import CombinedModel
from app.scoring.features import binoculars, likelihood_ratio, mean_surprise, statistics_of


def method_score(method: Method, columns: Columns, combined: CombinedModel | None = None) -> float | None:
    """The method's score; None where it is not defined: no scored token, no observer, or a denominator of zero.

    `combined` needs the weights of a calibration (`app.scoring.combined`); the other methods are formulas of the columns.
    """
    if not columns.logprob:
        return None
    if method == "combined":
        return combined.score(statistics_of(columns)) if combined else None
    return FORMULAS[method](columns)


def _fast_detect(columns: Columns) -> float | None:
    """(sum log p - sum mean) / sqrt(sum variance) (Fast-DetectGPT, arXiv 2310.05130, eq. 5, analytic, with one model as both scorer and
    sampler).
    """
    variance = sum(columns.variance)
    return (sum(columns.logprob) - sum(columns.mean)) / math.sqrt(variance) if variance > 0 else None


def _perplexity(columns: Columns) -> float:
    """Exp of the mean surprise."""
    return math.exp(min(mean_surprise(columns), 700.0))


def _log_rank(columns: Columns) -> float:
    """Mean natural logarithm of the rank (GLTR, arXiv 1906.04043)."""
    return sum(math.log(rank) for rank in columns.rank) / len(columns.logprob)


FORMULAS: dict[Method, Callable[[Columns], float | None]] = {
    "binoculars": binoculars,
    "likelihood_ratio": likelihood_ratio,
    "fast_detect": _fast_detect,
    "perplexity": _perplexity,
    "log_rank": _log_rank,
}
