"""Explains a score in sentences: what the number means, where it lies, and how often such a verdict is wrong. Knows no model."""

import math
from collections.abc import Sequence

from app.schemas import MIN_SCORED_TOKENS, Method, Verdict
from app.scoring.calibration import Judgement
from app.scoring.thresholds import DIRECTIONS


def explain(method: Method, value: float | None, count: int, verdict: Verdict, judgement: Judgement | None, reason: str) -> str:
    """`count` is the number of scored tokens; `reason` says, as a clause, why there is no judgement, and is used only then.

    A verdict of `uncertain` without a judgement is that of a text of a kind that was not measured.
    """
    if verdict == "uncertain" and judgement is None:
        return f"No verdict: {reason}. The scores are given all the same, but nobody has measured how often they err on such texts."
    if value is None:
        return "No token of this text could be scored: it is too short for the model to predict anything."
    if verdict == "insufficient":
        tokens = "1 scored token" if count == 1 else f"{count} scored tokens"
        return f"No verdict: the text has {tokens}, and a verdict needs at least {MIN_SCORED_TOKENS}, which are about 50 words."
    meaning = f"{_meaning(method, value, verdict)}; {DIRECTIONS[method]} values look more like a machine's writing."
    if judgement is None:
        return f"{meaning} There is no verdict: {reason}."
    return f"{meaning} {_position(judgement)} {_error_rate(judgement)}"


def explain_passages(verdicts: Sequence[Verdict]) -> str:
    """Where the passages of a text differ: how many read like a machine's by themselves. Blank where all or none do."""
    machine, count = verdicts.count("machine"), len(verdicts)
    if machine in (0, count):
        return ""
    return (
        f"Read by themselves, {machine} of the {count} passages {'reads' if machine == 1 else 'read'} like a machine's: look at where the "
        "text changes. A passage is judged wrongly as often as a text of its length, so some passages of long honest texts are called so."
    )


def _meaning(method: Method, value: float, verdict: Verdict) -> str:
    if method == "combined":
        side = {"machine": "point to a machine's writing", "human": "point to a person's writing"}.get(verdict, f"give {value:.3f}")
        return f"Taken together, the statistics of the text's tokens {side}"
    if method == "binoculars":
        return f"The text surprised the model {value:.2f} times as much as tokens drawn from the observer would on average"
    if method == "likelihood_ratio":
        comparison = "more" if value > 0 else "less"
        factor = math.exp(min(abs(value), 700.0))
        return f"On geometric average, each token was {factor:.3g} times {comparison} likely to the model than to the observer"
    if method == "fast_detect":
        comparison = "likelier" if value > 0 else "less likely"
        return f"The text's tokens are {abs(value):.2f} standard deviations {comparison} than tokens that the model would draw itself"
    if method == "perplexity":
        return f"At each token, the model was as uncertain as between {value:.1f} equally likely tokens"
    return f"On geometric average, each token had rank {math.exp(value):.1f} among the model's predictions"


def _position(judgement: Judgement) -> str:
    if judgement.outside:
        return "The score lies beyond those of all calibration texts, so no verdict is possible."
    if judgement.verdict == "machine":
        return f"The score is beyond the threshold {judgement.threshold:.3f}, where few human texts lie: the text reads like a machine's."
    if judgement.verdict == "human":
        return (
            "Few of the calibration's machine texts score like this. Texts of other models may: the verdict only excludes those measured."
        )
    return "Texts of both kinds score like this, so no verdict is possible."


def _error_rate(judgement: Judgement) -> str:
    if judgement.measured_fpr is None or judgement.fpr_low is None or judgement.fpr_high is None:
        return "The threshold was published without numbers on how often it errs."
    return (
        f"Of the {judgement.n_human} human texts of this length in the calibration, {judgement.measured_fpr:.1%} lie beyond the machine "
        f"threshold; if they are independent, the rate is {judgement.fpr_low:.1%} to {judgement.fpr_high:.1%} with 95% confidence. "
        "For other kinds of writing, and for people who write in a language that is not their first, it may be far higher. "
        "A score is not a proof."
    )
