"""From per-token statistics to the scores, verdict and explanation of a text. Plain arithmetic: no torch, no model.

A verdict needs a calibration that applies to the served models; without one it is `uncalibrated`, and the scores are given all the same.
"""

import math

from app.engine.events import Columns
from app.schemas import Contribution, Method, Rate, Score, Statistics, Verdict, Warning
from app.scoring.calibration import Judgement
from app.scoring.detector import ScoreOptions
from app.scoring.explanation import explain, explain_passages
from app.scoring.features import STATISTICS, statistics_of
from app.scoring.methods import method_score
from app.scoring.parts import distribution_of, judge, passage_scores, sentence_scores, token_scores
from app.scoring.prepare import PreparedText
from app.scoring.thresholds import DIRECTIONS
from app.scoring.warnings import DOUBTS, warnings
from app.tokenizer import Tokenizer


def build_score(index: int, options: ScoreOptions, columns: Columns, prepared: PreparedText, tokenizer: Tokenizer | None = None) -> Score:
    """The answer for the text at `index` of the request. Raises `InvalidRequest` for a target that is not calibrated for its length.

    `tokenizer` names the tokens of `Columns.top`; without it there are no alternatives.
    """
    count = len(columns.logprob)
    scores = {method: method_score(method, columns, options.combined) for method in options.methods}
    method = _deciding_method(options, count)
    value = scores[method]
    judged = judge(options, method, value, count)
    warned = list(warnings(prepared, columns, options.min_characters_per_token, options.memorised_nats))
    doubt = next((message for code, message in warned if code in DOUBTS), None) if judged.judgement else None
    verdict: Verdict = "uncertain" if doubt and judged.verdict != "insufficient" else judged.verdict
    explanation = explain(method, value, count, verdict, None if doubt else judged.judgement, doubt or why_no_judgement(options, method))
    passages = passage_scores(method, options, columns, prepared) if len(prepared.job.windows) > 1 else None
    if passages and not doubt:
        explanation = f"{explanation} {explain_passages([passage.verdict for passage in passages])}".strip()
    return Score(
        index=index,
        scores=scores,
        method=method,
        direction=DIRECTIONS[method],
        verdict=verdict,
        explanation=explanation,
        p_machine=None if doubt else judged.probability,
        threshold=judged.judgement.threshold if judged.judgement else None,
        false_positive_rate=_rate(judged.judgement) if judged.judgement else None,
        distribution=distribution_of(options, method, count) if judged.judgement else None,
        scored_tokens=count,
        windows=len(prepared.job.windows),
        truncated=prepared.truncated,
        normalisations=dict(prepared.text.changes),
        warnings=[Warning(code=code, message=message) for code, message in warned],
        statistics=_statistics(columns) if count else None,
        contributions=_contributions(method, options, columns) if count else None,
        passages=passages,
        sentences=sentence_scores(method, options, columns, prepared) if options.granularity != "none" else None,
        tokens=token_scores(columns, prepared, tokenizer) if options.granularity == "token" else None,
    )


def _deciding_method(options: ScoreOptions, count: int) -> Method:
    """The first requested method that is calibrated for texts of this length; the first of all if none is."""
    calibration, applicable = options.choice.calibration, options.choice.methods
    for method in options.methods:
        if calibration and method in applicable and calibration.bucket(method, count):
            return method
    return options.methods[0]


def why_no_judgement(options: ScoreOptions, method: Method) -> str:
    """As a clause."""
    if options.choice.calibration is None:
        return f"{options.choice.reason}"
    fitted = options.choice.calibration.methods.get(method)
    covered = f"; it covers {', '.join(bucket.name for bucket in fitted.buckets)} scored tokens" if fitted and fitted.buckets else ""
    return f"the calibration does not cover {method} for texts of this length{covered}"


def _rate(judgement: Judgement) -> Rate:
    interval = None if judgement.fpr_low is None or judgement.fpr_high is None else (judgement.fpr_low, judgement.fpr_high)
    return Rate(
        target=judgement.target_fpr,
        measured=judgement.measured_fpr,
        interval=interval,
        n=judgement.n_human,
        tokens=judgement.bucket,
        found=judgement.found,
        n_machine=judgement.n_machine if judgement.found is not None else None,
    )


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


def _contributions(method: Method, options: ScoreOptions, columns: Columns) -> list[Contribution] | None:
    """What each statistic adds to the log-odds of the question that leads, the weightiest first. Its constant and the other questions are
    left out, so they do not add up to the score.
    """
    if method != "combined" or options.combined is None:
        return None
    values = statistics_of(columns)
    question = options.combined.leading(values)
    found = [
        Contribution(
            question=question.name,
            statistic=term.statistic,
            meaning=STATISTICS[term.statistic],
            value=values[term.statistic],
            log_odds=term.share(values),
        )
        for term in question.terms
    ]
    return sorted(found, key=lambda contribution: -abs(contribution.log_odds))
