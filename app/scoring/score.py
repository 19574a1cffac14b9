"""From columns of statistics to a score that explains itself. Plain arithmetic: no torch, no model.

Verdicts need a calibration that belongs to the served models; without one the answer says `uncalibrated` and gives the numbers.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from app.engine.request import Columns
from app.engine.request import Score as Job
from app.schemas import MIN_SCORED_TOKENS, Method, Score, ScoredToken, Statistics, Verdict
from app.tokenizer import Encoded

HIDDEN = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")  # soft hyphen, zero-width space and joiners, word joiner, BOM
DIRECTIONS: dict[Method, Literal["lower", "higher"]] = {
    "binoculars": "lower",
    "fast_detect": "higher",
    "perplexity": "lower",
    "log_rank": "lower",
}


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is scored: without its zero-width characters, and how many those were."""

    content: str
    removed: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A text ready to be scored: as it stands, as tokens, and as a job for the engine."""

    text: Text
    encoded: Encoded
    job: Job


def clean(text: str) -> Text:
    content, removed = HIDDEN.subn("", text)
    return Text(content, removed)


def score_of(method: Method, columns: Columns) -> float | None:
    """The method's number, or None where it is not defined (no scored token, or no spread at all).

    binoculars: log-perplexity of the performer over cross-entropy observer -> performer (arXiv 2401.12070, as in its code).
    fast_detect: (sum log p - sum mean) / sqrt(sum variance) (Fast-DetectGPT, arXiv 2310.05130, eq. 5, analytic).
    perplexity: exp of the mean surprise. log_rank: mean natural logarithm of the rank.
    """
    count = len(columns.logprob)
    if not count:
        return None
    surprise = -sum(columns.logprob) / count
    if method == "binoculars":
        crossed = sum(columns.cross_entropy) / count
        return surprise / crossed if crossed > 0 else None
    if method == "fast_detect":
        variance = sum(columns.variance)
        return (sum(columns.logprob) - sum(columns.mean)) / math.sqrt(variance) if variance > 0 else None
    if method == "perplexity":
        return math.exp(min(surprise, 700.0))
    return sum(math.log(rank) for rank in columns.rank) / count


def assess(index: int, method: Method, columns: Columns, reading: Reading, with_tokens: bool) -> Score:
    value = score_of(method, columns)
    count = len(columns.logprob)
    verdict: Verdict = "insufficient" if value is None or count < MIN_SCORED_TOKENS else "uncalibrated"
    return Score(
        index=index,
        method=method,
        score=value,
        direction=DIRECTIONS[method],
        verdict=verdict,
        explanation=explain(method, value, count, verdict),
        scored_tokens=count,
        windows=len(reading.job.windows),
        removed_characters=reading.text.removed,
        statistics=_statistics(columns) if count else None,
        tokens=_tokens(columns, reading) if with_tokens else None,
    )


def explain(method: Method, value: float | None, count: int, verdict: Verdict) -> str:
    if value is None:
        return "No token of this text could be scored: it is too short for the model to have predicted anything."
    meaning = _meaning(method, value)
    lean = f"{'lower' if DIRECTIONS[method] == 'lower' else 'higher'} values look more like a machine's writing"
    if verdict == "insufficient":
        return f"{meaning}; {lean}. With {count} scored tokens (fewer than {MIN_SCORED_TOKENS}) that says too little for a verdict."
    return f"{meaning}; {lean}. No calibration belongs to the served model, so where the border lies is not known and no verdict is given."


def _meaning(method: Method, value: float) -> str:
    if method == "binoculars":
        return f"The text surprised the model {value:.2f} times as much as the observer's own choices would have"
    if method == "fast_detect":
        side = "likelier" if value > 0 else "less likely"
        return f"The text's tokens are {abs(value):.2f} standard deviations {side} than ones the model would draw itself"
    if method == "perplexity":
        return f"At each token the model was as unsure as between {value:.1f} equally likely ones"
    return f"The tokens stood at rank {math.exp(value):.1f} of the model's guesses in the geometric mean"


def _statistics(columns: Columns) -> Statistics:
    count = len(columns.logprob)
    surprise = -sum(columns.logprob) / count
    return Statistics(
        log_perplexity=surprise,
        mean_log_rank=sum(math.log(rank) for rank in columns.rank) / count,
        mean_entropy=-sum(columns.mean) / count,
        cross_entropy=sum(columns.cross_entropy) / count if columns.cross_entropy else None,
        perplexity=math.exp(min(surprise, 700.0)),
    )


def _tokens(columns: Columns, reading: Reading) -> list[ScoredToken]:
    rows = zip(reading.encoded.offsets[1:], columns.logprob, columns.rank, columns.mean, strict=True)
    return [
        ScoredToken(text=reading.text.content[start:end], start=start, end=end, logprob=logprob, rank=rank, entropy=-mean)
        for (start, end), logprob, rank, mean in rows
    ]
