"""The statistics of a text's tokens that `combined` weighs. Plain arithmetic, so that the API process can compute them.

Surprise is -log p of a token, entropy that of the model's prediction at its place, both in nats.
"""

import math
from collections.abc import Iterable
from statistics import median, pstdev

from app.engine.events import Columns

# What each statistic is, in words for an answer.
STATISTICS = {
    "surprise_where_sure": "surprise of the words that the model was surest about",
    "share_of_first_rank": "share of words that the model ranked first",
    "spread_of_surprise": "how much the surprise varies from word to word",
    "spread_of_entropy": "how much the model's uncertainty varies from word to word",
    "surprise_to_rank": "surprise in relation to the ranks of the words",
    "standard_score": "how the words compare with what the model would draw itself",
    "excess_surprise": "surprise beyond what the model's own draws would show",
    "share_beyond_rank_100": "share of words that the model ranked below its first 100",
    "binoculars": "surprise divided by that of words drawn from the observer",
    "likelihood_ratio": "how much likelier the words are to the model than to the observer",
}
OBSERVED = frozenset({"binoculars", "likelihood_ratio"})  # statistics of both models
MIN_VARIANCE = 1e-3  # nats squared, of log p at one place; keeps a place where the model is certain from deciding alone
STANDARD_SCORE_RANGE = (-4.0, 2.0)


def statistics_of(columns: Columns) -> dict[str, float]:
    """The statistics of at least one scored token, by the names in `STATISTICS`.

    surprise_where_sure: mean surprise of the tokens whose entropy lies below the text's median. surprise_to_rank: mean surprise divided by
    mean log-rank (LRR, arXiv 2306.05540). standard_score: mean of (log p - mean) / standard deviation at each place, clipped.
    excess_surprise: mean of what exceeds the mean surprise of that place by more than two standard deviations. Those in `OBSERVED` are
    there only where an observer read the text, too.
    """
    surprise = [-logprob for logprob in columns.logprob]
    entropy = [-mean for mean in columns.mean]
    deviation = [math.sqrt(max(variance, MIN_VARIANCE)) for variance in columns.variance]
    middle = median(entropy)
    places = list(zip(surprise, entropy, deviation, strict=True))
    sure = [nats for nats, uncertain, _ in places if uncertain < middle] or surprise
    low, high = STANDARD_SCORE_RANGE
    log_rank = _mean(math.log(rank) for rank in columns.rank)
    return {
        "surprise_where_sure": _mean(sure),
        "share_of_first_rank": _mean(rank == 1 for rank in columns.rank),
        "spread_of_surprise": pstdev(surprise),
        "spread_of_entropy": pstdev(entropy),
        "surprise_to_rank": _mean(surprise) / max(log_rank, 1e-6),
        "standard_score": _mean(min(max((expected - nats) / spread, low), high) for nats, expected, spread in places),
        "excess_surprise": _mean(max(0.0, nats - expected - 2 * spread) for nats, expected, spread in places),
        "share_beyond_rank_100": _mean(rank > 100 for rank in columns.rank),
        **_of_both_models(columns),
    }


def _of_both_models(columns: Columns) -> dict[str, float]:
    ratio, surprise_ratio = likelihood_ratio(columns), binoculars(columns)
    if ratio is None:
        return {}
    return {"binoculars": 0.0 if surprise_ratio is None else surprise_ratio, "likelihood_ratio": ratio}  # 0: both models were certain


def binoculars(columns: Columns) -> float | None:
    """Log-perplexity of the performer / cross-entropy observer -> performer (arXiv 2401.12070, as in its published code, which uses the
    performer's perplexity; unlike there, one token is enough, and no token id counts as padding). None without an observer.
    """
    cross_entropy = sum(columns.cross_entropy) / len(columns.logprob)
    return mean_surprise(columns) / cross_entropy if cross_entropy > 0 else None


def likelihood_ratio(columns: Columns) -> float | None:
    """Mean of log p - log p_observer, the statistic of the Neyman-Pearson test of "the performer wrote this" against "the observer wrote
    this", divided by the number of tokens (arXiv 2203.03929 also uses a base model as the reference). None without an observer.
    """
    return (sum(columns.logprob) - sum(columns.observed)) / len(columns.logprob) if columns.observed else None


def mean_surprise(columns: Columns) -> float:
    """In nats."""
    return -sum(columns.logprob) / len(columns.logprob)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
