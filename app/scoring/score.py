"""From per-token statistics to the scores, verdict and explanation of a text. Plain arithmetic: no torch, no model.

A verdict needs a calibration that applies to the served models; without one it is `uncalibrated`, and the scores are given all the same.
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
from app.scoring.detector import CalibrationChoice
from app.scoring.explanation import explain
from app.scoring.normalize import NormalizedText
from app.scoring.sentences import sentences
from app.scoring.thresholds import DIRECTIONS
from app.scoring.warnings import warnings
from app.tokenizer import Encoded


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text ready to be scored: normalized, tokenized, and as a job for the engine. `truncated`: only its beginning is scored."""

    text: NormalizedText
    encoded: Encoded
    job: Job
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a request asks for each of its texts, and the calibration its verdicts use."""

    methods: Sequence[Method]
    choice: CalibrationChoice
    granularity: Granularity = "none"
    target_fpr: float | None = None


def method_score(method: Method, columns: Columns) -> float | None:
    """The method's score; None where it is not defined: no scored token, no observer, or a denominator of zero.

    binoculars: log-perplexity of the performer / cross-entropy observer -> performer (arXiv 2401.12070, as in its published code, which
    uses the performer's perplexity; unlike there, one token is enough, and no token id counts as padding).
    likelihood_ratio: mean of log p - log p_observer, the statistic of the Neyman-Pearson test of "the performer wrote this" against "the
    observer wrote this", divided by the number of tokens (arXiv 2203.03929 also uses a base model as the reference).
    fast_detect: (sum log p - sum mean) / sqrt(sum variance) (Fast-DetectGPT, arXiv 2310.05130, eq. 5, analytic, with one model as both
    scorer and sampler).
    perplexity: exp of the mean surprise. log_rank: mean natural logarithm of the rank (GLTR, arXiv 1906.04043).
    """
    count = len(columns.logprob)
    if not count:
        return None
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


def build_score(index: int, options: ScoreOptions, columns: Columns, prepared: PreparedText) -> Score:
    """The answer for the text at `index` of the request. Raises `InvalidRequest` for a target that is not calibrated for its length."""
    count = len(columns.logprob)
    scores = {method: method_score(method, columns) for method in options.methods}
    method = _deciding_method(options, count)
    value = scores[method]
    judgement = None if value is None or count < MIN_SCORED_TOKENS else _judge(options, method, count, value)
    verdict: Verdict = "insufficient" if value is None or count < MIN_SCORED_TOKENS else judgement.verdict if judgement else "uncalibrated"
    return Score(
        index=index,
        scores=scores,
        method=method,
        direction=DIRECTIONS[method],
        verdict=verdict,
        explanation=explain(method, value, count, verdict, judgement, _why_no_judgement(options, method)),
        p_machine=_probability(judgement),
        threshold=judgement.threshold if judgement else None,
        false_positive_rate=_rate(judgement) if judgement else None,
        scored_tokens=count,
        windows=len(prepared.job.windows),
        truncated=prepared.truncated,
        normalisations=dict(prepared.text.changes),
        warnings=_warnings(columns, prepared),
        statistics=_statistics(columns) if count else None,
        sentences=_sentences(method, columns, prepared) if options.granularity != "none" else None,
        tokens=_tokens(columns, prepared) if options.granularity == "token" else None,
    )


def _deciding_method(options: ScoreOptions, count: int) -> Method:
    """The first requested method that is calibrated for texts of this length; the first of all if none is."""
    calibration, applicable = options.choice.calibration, options.choice.methods
    for method in options.methods:
        if calibration and method in applicable and calibration.bucket(method, count):
            return method
    return options.methods[0]


def _judge(options: ScoreOptions, method: Method, count: int, value: float) -> Judgement | None:
    calibration = options.choice.calibration if method in options.choice.methods else None
    return calibration.judge(method, count, value, options.target_fpr) if calibration else None


def _why_no_judgement(options: ScoreOptions, method: Method) -> str:
    if options.choice.calibration is None:
        return f"{options.choice.reason}"
    return f"the calibration does not cover {method} for texts of this length"


def _probability(judgement: Judgement | None) -> Probability | None:
    if judgement is None or judgement.p_machine is None or judgement.p_low is None or judgement.p_high is None:
        return None
    return Probability(value=judgement.p_machine, interval=(judgement.p_low, judgement.p_high))


def _rate(judgement: Judgement) -> Rate:
    interval = None if judgement.fpr_low is None or judgement.fpr_high is None else (judgement.fpr_low, judgement.fpr_high)
    return Rate(
        target=judgement.target_fpr, measured=judgement.measured_fpr, interval=interval, n=judgement.n_human, tokens=judgement.bucket
    )


def _warnings(columns: Columns, prepared: PreparedText) -> list[Warning]:
    messages = [Warning(code=code, message=message) for code, message in warnings(prepared.text.content, prepared.encoded.ids, columns)]
    if prepared.truncated:
        tokens = len(prepared.encoded.ids)
        messages.append(Warning(code="truncated", message=f"only the first {tokens} tokens were scored; send a long text in several parts"))
    return messages


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


def _sentences(method: Method, columns: Columns, prepared: PreparedText) -> list[SentenceScore]:
    """Scores each sentence from the tokens that begin in it; a blank before a word counts to the word."""
    scores: list[SentenceScore] = []
    token_starts = list(prepared.encoded.token_starts())[1 : len(columns.logprob) + 1]
    content = prepared.text.content
    scored_end = prepared.encoded.offsets[-1][1] if prepared.encoded.offsets else 0
    token = 0  # the next token without a sentence
    for start, end in sentences(content[:scored_end] if prepared.truncated else content):
        first = token
        while token < len(token_starts) and token_starts[token] < end:
            token += 1
        part, tokens = _slice(columns, first, token), token - first
        mean = sum(part.logprob) / tokens if tokens else None
        sent_start, sent_end = prepared.text.original_span(start, end)
        scores.append(SentenceScore(start=sent_start, end=sent_end, tokens=tokens, score=method_score(method, part), logprob=mean))
    return scores


def _slice(columns: Columns, first: int, last: int) -> Columns:
    return Columns(*(getattr(columns, field.name)[first:last] for field in fields(Columns)))


def _tokens(columns: Columns, prepared: PreparedText) -> list[TokenScore]:
    """Offsets index the text as it was sent; a token's text is the normalized text that was scored."""
    rows = zip(prepared.encoded.offsets[1:], columns.logprob, columns.rank, columns.mean, strict=True)
    scores = []
    for (start, end), logprob, rank, mean in rows:
        sent_start, sent_end = prepared.text.original_span(start, end)
        text = prepared.text.content[start:end]
        scores.append(TokenScore(text=text, start=sent_start, end=sent_end, logprob=logprob, rank=rank, entropy=-mean))
    return scores
