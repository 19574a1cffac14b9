"""The score of a text in words: the verdict first, then what it means, then numbers and limits. Plain text, pure.

Decides nothing: the verdict, its reasons and its limits come from the server.
"""

from collections.abc import Iterator

from app.schemas import Method, Rate, Score, Verdict
from ui.client import ScoreResult
from ui.score.bands import NAMES, band_of
from ui.score.facts import sentence
from ui.score.numbers import format_score, percent

NO_VERDICT: dict[Verdict, str] = {
    "uncalibrated": "No verdict: this model is not calibrated",
    "insufficient": "Too short to judge",
}
METHODS: dict[Method, str] = {
    "combined": "Combined score",
    "binoculars": "Binoculars score",
    "likelihood_ratio": "Likelihood ratio",
    "fast_detect": "Fast-DetectGPT score",
    "perplexity": "Perplexity",
    "log_rank": "Log-rank",
}
PASSAGES: dict[Verdict, str] = {
    "machine": "reads like machine text",
    "human": "reads like human text",
    "uncertain": "cannot tell",
    "uncalibrated": "no verdict",
    "insufficient": "too short",
}
MAX_PASSAGES = 12
OPENING_CHARS = 40
CAVEAT = (
    "A score is not a proof, and no share of the text. Detectors are often wrong about short texts, writers whose first language is not "
    "English, famous or quoted texts, and machine text that was edited. Never decide about a person by this number alone."
)


def verdict_text(result: ScoreResult, text: str, hint: str | None = None) -> str:
    """`text` is what was sent to the server; `hint` is what else the user should know about this text."""
    score = result.score
    parts = [f"{headline(score)}.", score.explanation, "\n".join(numbers(result))]
    warnings = [*(sentence(warning.message) for warning in score.warnings), *([hint] if hint else [])]
    if warnings:
        parts.append("\n".join(["Mind:", *(f"• {warning}" for warning in warnings)]))
    if score.passages:
        parts.append("\n".join(["Its passages, each by itself:", *passages(score, text)]))
    return "\n\n".join(part for part in [*parts, CAVEAT] if part)


def headline(score: Score) -> str:
    """The band, or why there is none."""
    band = band_of(score)
    leans = ", but too uncertain for a verdict" if band in {"leans_machine", "leans_human"} else ""
    return NO_VERDICT.get(score.verdict, f"{NAMES[band]}{leans}")


def numbers(result: ScoreResult) -> Iterator[str]:
    score = result.score
    value = score.scores.get(score.method)
    side = "below" if score.direction == "lower" else "above"
    threshold = "" if score.threshold is None else f" (machine verdict: {side} {format_score(score.threshold)})"
    yield f"{METHODS[score.method]}: {'none' if value is None else format_score(value)}{threshold}"
    if score.p_machine is not None:
        low, high = score.p_machine.interval
        interval = f"95% interval {percent(low)} to {percent(high)}"
        yield f"Probability of machine text, if half of all texts were: {percent(score.p_machine.value)} ({interval})"
    if score.false_positive_rate is not None:
        yield _errors(score.false_positive_rate)
    if score.statistics is not None:
        yield f"Perplexity: {format_score(score.statistics.perplexity)}"
    yield f"Scored tokens: {score.scored_tokens:,}{', only the beginning of the text' if score.truncated else ''}"
    if score.verdict not in NO_VERDICT:
        yield f"Calibration: {result.calibration.source or 'none'}"


def passages(score: Score, text: str) -> Iterator[str]:
    every = score.passages or []
    for passage in every[:MAX_PASSAGES]:
        opening = " ".join(text[passage.start : passage.end].split())
        shown = opening if len(opening) <= OPENING_CHARS else f"{opening[:OPENING_CHARS].rstrip()}…"
        yield f"• “{shown}” ({passage.tokens:,} tokens): {PASSAGES[passage.verdict]}"
    if len(every) > MAX_PASSAGES:
        yield f"• and {len(every) - MAX_PASSAGES} more"


def _errors(rate: Rate) -> str:
    texts = f"texts of {rate.tokens} tokens"
    if rate.measured is None or rate.n is None:
        return f"How often this threshold is wrong about people’s texts was not published ({texts})."
    low, high = rate.interval or (rate.measured, rate.measured)
    return f"Wrongly flagged at this threshold: {rate.measured:.1%} of {rate.n:,} human {texts} (95% interval {low:.1%} to {high:.1%})"
