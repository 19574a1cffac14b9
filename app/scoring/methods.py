"""The scoring methods: arithmetic on the columns of a text. No torch, no model."""

import math

from app.engine.request import Columns
from app.schemas import Method
from app.scoring.combined import CombinedModel
from app.scoring.features import statistics_of


def method_score(method: Method, columns: Columns, combined: CombinedModel | None = None) -> float | None:
    """The method's score; None where it is not defined: no scored token, no observer, or a denominator of zero.

    binoculars: log-perplexity of the performer / cross-entropy observer -> performer (arXiv 2401.12070, as in its published code, which
    uses the performer's perplexity; unlike there, one token is enough, and no token id counts as padding).
    likelihood_ratio: mean of log p - log p_observer, the statistic of the Neyman-Pearson test of "the performer wrote this" against "the
    observer wrote this", divided by the number of tokens (arXiv 2203.03929 also uses a base model as the reference).
    fast_detect: (sum log p - sum mean) / sqrt(sum variance) (Fast-DetectGPT, arXiv 2310.05130, eq. 5, analytic, with one model as both
    scorer and sampler).
    perplexity: exp of the mean surprise. log_rank: mean natural logarithm of the rank (GLTR, arXiv 1906.04043).
    combined: `app.scoring.combined`, by the calibration's weights.
    """
    count = len(columns.logprob)
    if not count:
        return None
    if method == "combined":
        return combined.score(statistics_of(columns)) if combined else None
    surprise = -sum(columns.logprob) / count
    if method == "binoculars":
        cross_entropy = sum(columns.cross_entropy) / count
        return surprise / cross_entropy if cross_entropy > 0 else None
    if method == "likelihood_ratio":
        return (sum(columns.logprob) - sum(columns.observed)) / count if columns.observed else None
    if method == "fast_detect":
        variance = sum(columns.variance)
        return (sum(columns.logprob) - sum(columns.mean)) / math.sqrt(variance) if variance > 0 else None
    if method == "perplexity":
        return math.exp(min(surprise, 700.0))
    return sum(math.log(rank) for rank in columns.rank) / count
