"""Translates the score of one text into HTML: verdict, gauge, explanation, confidence, warnings, measurements, and the text itself.

Pure, and decides nothing: the verdict and its reasons come from the server.
"""

from collections.abc import Sequence

from app.schemas import Contribution, Normalisation, Rate, Score, Statistics, UsedCalibration, Verdict
from ui.client import ScoreResult
from ui.markup import escape_html
from ui.score import highlight
from ui.score.gauge import METHOD_NAMES, format_score, gauge_html

VERDICTS: dict[Verdict, str] = {
    "machine": "Likely machine-written",
    "human": "Likely human-written",
    "uncertain": "Uncertain",
    "uncalibrated": "Not calibrated",
    "insufficient": "Too short to judge",
}
CHANGES: dict[Normalisation, tuple[str, str, str]] = {  # singular, plural, what normalization did with them
    "quotes": ("typographic quote", "typographic quotes", "made plain"),
    "zero_width": ("zero-width character", "zero-width characters", "left out"),
    "control": ("control character", "control characters", "left out"),
    "homoglyph": ("look-alike letter", "look-alike letters", "read as Latin"),
    "compatibility": ("styled letter", "styled letters", "read as plain"),
    "white_space": ("blank or line break", "blanks and line breaks", "merged"),
}
CAVEAT = (
    "A score is not a proof. Detectors are often wrong about short texts, writers whose first language is not English, famous or "
    "quoted texts, and machine text that was paraphrased. Never decide about a person by this number alone."
)
FactRows = dict[str, str]  # row name to HTML


def report_html(result: ScoreResult, text: str, model: str | None = None) -> str:
    """The whole report.

    `text` is what was sent; the parts that no scored token covers (always its first token) are shown uncoloured. `model` is named
    beside the score; None where the server has one model.
    """
    score = result.score
    value = score.scores.get(score.method)
    parts = [_verdict_html(score, value, model)]
    if value is not None:
        parts.append(gauge_html(score.method, value, score.direction, score.threshold))
    parts += [f'<p class="explanation">{escape_html(score.explanation)}</p>', _warnings_html(score)]
    parts.append(_facts_html("Confidence", _confidence_rows(score, result.calibration)))
    parts.append(_facts_html("Measurements", _measurement_rows(score, result.total_s)))
    if score.contributions:
        parts.append(_facts_html("What the score comes from, in log-odds", _contribution_rows(score.contributions)))
    if score.passages:
        parts.append(highlight.passages_html(score, score.passages, text))
    if score.sentences and len(score.sentences) > 1:
        parts.append(highlight.sentences_html(score, score.sentences, text))
    if score.tokens:
        parts.append(highlight.tokens_html(score.tokens, text))
    return f'<section class="report" aria-label="Result">{"".join(parts)}</section>'


def idle_html() -> str:
    return '<p class="status">Paste a text and press Score. The result appears here.</p>'


def scoring_html() -> str:
    return '<p class="status busy" role="status">Scoring the text</p>'


def caveat_html() -> str:
    return f'<p class="caveat">{CAVEAT}</p>'


def _verdict_html(score: Score, value: float | None, model: str | None) -> str:
    by_model = f" by {escape_html(model)}" if model is not None else ""
    return (
        f'<div class="verdict"><strong class="badge {score.verdict}">{VERDICTS[score.verdict]}</strong>'
        f"<span>{METHOD_NAMES[score.method]} <b>{_score_text(value)}</b>{by_model}</span></div>"
    )


def _score_text(value: float | None) -> str:
    return "no score" if value is None else format_score(value)


def _warnings_html(score: Score) -> str:
    items = "".join(f"<li>{escape_html(_as_sentence(warning.message))}</li>" for warning in score.warnings)
    return f'<h3>Warnings</h3><ul class="warnings">{items}</ul>' if items else ""


def _as_sentence(message: str) -> str:
    """Adds the capital letter and the full stop that a message may lack."""
    stripped = message.strip()
    return f"{stripped[:1].upper()}{stripped[1:]}{'' if stripped.endswith(('.', '!', '?')) else '.'}"


def _facts_html(heading: str, rows: FactRows) -> str:
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items())
    return f'<h3>{heading}</h3><dl class="facts">{items}</dl>'


def _confidence_rows(score: Score, calibration: UsedCalibration) -> FactRows:
    rows = {}
    if score.p_machine is not None:
        low, high = score.p_machine.interval
        rows["Probability of machine text, if half of all texts were machine-written"] = (
            f"{_format_probability(score.p_machine.value)}, 95% interval {_format_probability(low)} to {_format_probability(high)}"
        )
    if score.threshold is not None:
        side = "below" if score.direction == "lower" else "above"
        rows["Threshold of a machine verdict"] = f"{side} {format_score(score.threshold)}"
    if score.false_positive_rate is not None:
        rows["False-positive rate: human texts judged machine-written"] = _format_rate(score.false_positive_rate)
    rows["Calibration"] = escape_html(calibration.source or f"none: {calibration.reason or 'no reason was given'}")
    return rows


def _format_probability(value: float) -> str:
    """Two decimals, and never 0 or 1."""
    return "over 0.99" if value > 0.99 else "under 0.01" if value < 0.01 else f"{value:.2f}"


def _format_rate(rate: Rate) -> str:
    """The measured rate, its interval, the target, and the length of the texts, as far as they are known."""
    target = "" if rate.target is None else f"target {_format_percent(rate.target)}"
    texts = escape_html(f"texts of {rate.tokens} tokens")
    if rate.measured is None:
        return ", ".join(part for part in (target, f"published without a measurement; {texts}") if part)
    of_count = "" if rate.n is None else f" of {rate.n:,}"
    interval = "" if rate.interval is None else f"95% interval {_format_percent(rate.interval[0])} to {_format_percent(rate.interval[1])}"
    return ", ".join(part for part in (f"{_format_percent(rate.measured)}{of_count}", interval, target, texts) if part)


def _format_percent(fraction: float) -> str:
    """At most two decimals, without trailing zeros."""
    return f"{100 * fraction:.2f}".rstrip("0").rstrip(".") + "%"


def _contribution_rows(contributions: Sequence[Contribution]) -> FactRows:
    return {
        escape_html(_as_sentence(each.meaning).rstrip(".")): f"{each.value:.3f}: {abs(each.log_odds):.2f} "
        f"towards {'a machine' if each.log_odds > 0 else 'a person'}"
        for each in contributions
    }


def _measurement_rows(score: Score, total_s: float) -> FactRows:
    rows = {METHOD_NAMES[method]: _score_text(value) for method, value in score.scores.items() if method != score.method}
    rows["Scored tokens"] = f"{score.scored_tokens:,}{', only the beginning of the text' if score.truncated else ''}"
    if score.windows > 1:
        rows["Windows"] = f"{score.windows:,}"
    if score.statistics is not None:
        rows |= _statistics_rows(score.statistics)
    if score.normalisations:
        rows["Changed before scoring"] = "; ".join(_format_change(change, count) for change, count in score.normalisations.items())
    rows["Time"] = f"{total_s:.2f} s"
    return rows


def _statistics_rows(statistics: Statistics) -> FactRows:
    rows = {
        "Perplexity of the text": format_score(statistics.perplexity),
        "Log-perplexity": f"{statistics.log_perplexity:.3f}",
        "Mean log-rank": f"{statistics.mean_log_rank:.3f}",
        "Mean entropy": f"{statistics.mean_entropy:.3f} nats",
    }
    return rows if statistics.cross_entropy is None else {**rows, "Cross-entropy": f"{statistics.cross_entropy:.3f}"}


def _format_change(change: Normalisation, count: int) -> str:
    singular, plural, action = CHANGES[change]
    return f"{count:,} {singular if count == 1 else plural} {action}"
