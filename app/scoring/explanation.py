"""A score in words: what the number means, where the border lies, and how sure that is. Knows no model and no wire."""

import math

from app.schemas import MIN_SCORED_TOKENS, Method, Verdict
from app.scoring.calibration import Judgement
from app.scoring.thresholds import DIRECTIONS


def explain(method: Method, value: float | None, count: int, verdict: Verdict, judged: Judgement | None, reason: str) -> str:
    """`reason`: why nothing was judged, where nothing was."""
    if value is None:
        return "No token of this text could be scored: it is too short for the model to have predicted anything."
    lean = f"{DIRECTIONS[method]} values look more like a machine's writing"
    said = f"{_meaning(method, value)}; {lean}."
    if verdict == "insufficient":
        return f"{said} With {count} scored tokens (fewer than {MIN_SCORED_TOKENS}) that says too little for a verdict."
    if judged is None:
        return f"{said} No verdict is given: {reason}."
    return f"{said} {_place(judged)} {_certainty(judged)}".strip()


def _meaning(method: Method, value: float) -> str:
    if method == "binoculars":
        return f"The text surprised the model {value:.2f} times as much as the observer's own choices would have"
    if method == "likelihood_ratio":
        side = "more" if value > 0 else "less"
        times = math.exp(min(abs(value), 700.0))
        return f"Each token was {times:.3g} times {side} likely to the model than to the observer, in the geometric mean"
    if method == "fast_detect":
        side = "likelier" if value > 0 else "less likely"
        return f"The text's tokens are {abs(value):.2f} standard deviations {side} than ones the model would draw itself"
    if method == "perplexity":
        return f"At each token the model was as unsure as between {value:.1f} equally likely ones"
    return f"The tokens stood at rank {math.exp(value):.1f} of the model's guesses in the geometric mean"


def _place(judged: Judgement) -> str:
    if judged.outside:
        return "That lies beyond every text that was measured: no verdict can be given."
    if judged.verdict == "machine":
        return f"That is beyond {judged.threshold:.3f}, where few human texts lie: it reads like a machine's."
    if judged.verdict == "human":
        return "Few of the machine texts that were measured lie there. Texts of other models may: it only says that none of these wrote it."
    return "That is where texts of both kinds lie: no verdict can be given."


def _certainty(judged: Judgement) -> str:
    if judged.measured_fpr is None or judged.fpr_low is None or judged.fpr_high is None:
        return "How often that border errs was published without its numbers."
    return (
        f"Of the {judged.n_human} human texts of this length that were measured {judged.measured_fpr:.1%} lay beyond the machine's border; "
        f"were they independent, the rate would be {judged.fpr_low:.1%} to {judged.fpr_high:.1%} with 95% confidence. For other writing, "
        "and for people who write in a language that is not their first, it may be far higher. A score is not a proof."
    )
