"""Numbers as words: scores, probabilities, rates. Knows no HTML."""

from app.schemas import Rate, Score


def format_score(score: float) -> str:
    return f"{score:,.3f}" if abs(score) < 1e6 else f"{score:.2e}"


def score_text(value: float | None) -> str:
    return "no score" if value is None else format_score(value)


def percent(probability: float) -> str:
    """Never 0 or 100: no number of texts shows that."""
    return "over 99%" if probability > 0.99 else "under 1%" if probability < 0.01 else f"{probability:.0%}"


def of_thousand(share: float) -> str:
    """A share as so many of 1,000, with a decimal where it is small."""
    count = 1000 * share
    return f"{count:.1f}".removesuffix(".0") if count < 10 else f"{count:,.0f}"


def probability_text(score: Score) -> str | None:
    if score.p_machine is None:
        return None
    low, high = score.p_machine.interval
    return f"{percent(score.p_machine.value)} (95% interval {percent(low)} to {percent(high)})"


def threshold_text(score: Score) -> str | None:
    if score.threshold is None:
        return None
    return f"{'below' if score.direction == 'lower' else 'above'} {format_score(score.threshold)}"


def rate_text(rate: Rate) -> str:
    """How often the threshold is wrong about people's texts, on how many of them that was measured, and what it finds."""
    if rate.measured is None or rate.n is None:
        target = "" if rate.target is None else f" for a target of {of_thousand(rate.target)} of 1,000"
        return f"It was published{target}, without saying on how many texts it was measured (texts of {rate.tokens} tokens)."
    low, high = rate.interval or (rate.measured, rate.measured)
    wrong = (
        f"At this threshold {of_thousand(rate.measured)} of 1,000 human texts are wrongly flagged (measured on {rate.n:,} texts of "
        f"{rate.tokens} tokens; 95% interval {of_thousand(low)} to {of_thousand(high)})."
    )
    if rate.found is None:
        return wrong
    return f"{wrong} It finds {of_thousand(rate.found)} of 1,000 of the {rate.n_machine or 0:,} machine texts that were measured."
