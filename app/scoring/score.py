"""From columns of statistics to a score that explains itself. Plain arithmetic: no torch, no model.

Verdicts need a calibration that belongs to the served models; without one the answer says `uncalibrated` and gives the numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from app.engine.request import Columns
from app.engine.request import Score as Job
from app.schemas import (
    MIN_SCORED_TOKENS,
    Granularity,
    Method,
    Probability,
    Rate,
    Score,
    SentenceScore,
    Statistics,
    TokenScore,
    Verdict,
    Warning,
)
from app.scoring.calibration import Judgement
from app.scoring.detector import Ground
from app.scoring.explanation import explain
from app.scoring.normalize import Text
from app.scoring.sentences import sentences
from app.scoring.thresholds import DIRECTIONS
from app.scoring.warnings import warnings
from app.tokenizer import Encoded


@dataclass(frozen=True, slots=True)
class Reading:
    """A text ready to be scored: as it stands, as tokens, and as a job for the engine."""

    text: Text
    encoded: Encoded
    job: Job
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every text of a request, and what its verdict may rest on."""

    methods: Sequence[Method]
    ground: Ground
    granularity: Granularity = "none"
    target_fpr: float | None = None


def score_of(method: Method, columns: Columns) -> float | None:
    """The method's number, or None where it is not defined (no scored token, no observer, or no spread at all).

    binoculars: log-perplexity of the performer over cross-entropy observer -> performer (arXiv 2401.12070, as in its code: the
    performer's perplexity, shifted; unlike it, one token is enough, and padding is never told by a token's id).
    likelihood_ratio: mean of log p - log p_observer, the statistic of Neyman and Pearson's test of "the performer wrote this" against
    "the observer did" (with a base model as the reference also in arXiv 2203.03929), over the number of tokens.
    fast_detect: (sum log p - sum mean) / sqrt(sum variance) (Fast-DetectGPT, arXiv 2310.05130, eq. 5, analytic; one model is both
    scorer and sampler). perplexity: exp of the mean surprise. log_rank: mean natural logarithm of the rank (GLTR, arXiv 1906.04043).
    """
    count = len(columns.logprob)
    if not count:
        return None
    surprise = -sum(columns.logprob) / count
    if method == "binoculars":
        crossed = sum(columns.cross_entropy) / count
        return surprise / crossed if crossed > 0 else None
    if method == "likelihood_ratio":
        return (sum(columns.logprob) - sum(columns.observed)) / count if columns.observed else None
    if method == "fast_detect":
        variance = sum(columns.variance)
        return (sum(columns.logprob) - sum(columns.mean)) / math.sqrt(variance) if variance > 0 else None
    if method == "perplexity":
        return math.exp(min(surprise, 700.0))
    return sum(math.log(rank) for rank in columns.rank) / count


def assess(index: int, question: Question, columns: Columns, reading: Reading) -> Score:
    count = len(columns.logprob)
    scores = {method: score_of(method, columns) for method in question.methods}
    method = _deciding(question, count)
    value = scores[method]
    judged = None if value is None or count < MIN_SCORED_TOKENS else _judge(question, method, count, value)
    verdict: Verdict = "insufficient" if value is None or count < MIN_SCORED_TOKENS else judged.verdict if judged else "uncalibrated"
    return Score(
        index=index,
        scores=scores,
        method=method,
        direction=DIRECTIONS[method],
        verdict=verdict,
        explanation=explain(method, value, count, verdict, judged, _unjudged(question, method)),
        p_machine=_probability(judged),
        threshold=judged.threshold if judged else None,
        false_positive_rate=_rate(judged) if judged else None,
        scored_tokens=count,
        windows=len(reading.job.windows),
        truncated=reading.truncated,
        normalisations=dict(reading.text.changes),
        warnings=_warnings(columns, reading),
        statistics=_statistics(columns) if count else None,
        sentences=_sentences(method, columns, reading) if question.granularity != "none" else None,
        tokens=_tokens(columns, reading) if question.granularity == "token" else None,
    )


def _deciding(question: Question, count: int) -> Method:
    """The first of the methods that is calibrated for texts of this length."""
    known, fitting = question.ground.calibration, question.ground.methods
    return next((method for method in question.methods if known and method in fitting and known.bucket(method, count)), question.methods[0])


def _judge(question: Question, method: Method, count: int, value: float) -> Judgement | None:
    known = question.ground.calibration if method in question.ground.methods else None
    return known.judge(method, count, value, question.target_fpr) if known else None


def _unjudged(question: Question, method: Method) -> str:
    if question.ground.calibration is None:
        return f"where the border lies is not known, as {question.ground.reason}"
    return f"the calibration has no texts of this length for {method}"


def _probability(judged: Judgement | None) -> Probability | None:
    if judged is None or judged.p_machine is None or judged.p_low is None or judged.p_high is None:
        return None
    return Probability(value=judged.p_machine, interval=(judged.p_low, judged.p_high))


def _rate(judged: Judgement) -> Rate:
    interval = None if judged.fpr_low is None or judged.fpr_high is None else (judged.fpr_low, judged.fpr_high)
    return Rate(target=judged.target_fpr, measured=judged.measured_fpr, interval=interval, n=judged.n_human, tokens=judged.bucket)


def _warnings(columns: Columns, reading: Reading) -> list[Warning]:
    found = [Warning(code=code, message=message) for code, message in warnings(reading.text.content, reading.encoded.ids, columns)]
    if reading.truncated:
        tokens = len(reading.encoded.ids)
        found.append(Warning(code="truncated", message=f"only the first {tokens} tokens were scored; send a long text in parts"))
    return found


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


def _sentences(method: Method, columns: Columns, reading: Reading) -> list[SentenceScore]:
    """Each with the tokens that begin in it; the blank before a word belongs to the word."""
    made, at = [], 0
    begins = list(reading.encoded.starts())[1 : len(columns.logprob) + 1]
    content = reading.text.content
    last = reading.encoded.offsets[-1][1] if reading.encoded.offsets else 0
    for start, end in sentences(content[:last] if reading.truncated else content):
        first = at
        while at < len(begins) and begins[at] < end:
            at += 1
        part = _slice(columns, first, at)
        mean = sum(part.logprob) / (at - first) if at > first else None
        left, right = reading.text.span(start, end)
        made.append(SentenceScore(start=left, end=right, tokens=at - first, score=score_of(method, part), logprob=mean))
    return made


def _slice(columns: Columns, first: int, last: int) -> Columns:
    return Columns(*(getattr(columns, field.name)[first:last] for field in fields(Columns)))


def _tokens(columns: Columns, reading: Reading) -> list[TokenScore]:
    """Offsets index the text as sent; a token's text is what was scored."""
    rows = zip(reading.encoded.offsets[1:], columns.logprob, columns.rank, columns.mean, strict=True)
    made = []
    for (start, end), logprob, rank, mean in rows:
        left, right = reading.text.span(start, end)
        text = reading.text.content[start:end]
        made.append(TokenScore(text=text, start=left, end=right, logprob=logprob, rank=rank, entropy=-mean))
    return made
