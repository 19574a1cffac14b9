"""What a result says beyond its verdict, as rows of names and values: measurements, contributions, calibration. Pure."""

from collections.abc import Sequence

from app.schemas import Contribution, Normalisation, Statistics
from ui.client import ScoreResult
from ui.markup import escape_html
from ui.score.gauge import METHOD_NAMES
from ui.score.numbers import format_score, score_text

CHANGES: dict[Normalisation, tuple[str, str, str]] = {  # singular, plural, what normalization did with them
    "quotes": ("typographic quote", "typographic quotes", "made plain"),
    "zero_width": ("zero-width character", "zero-width characters", "left out"),
    "control": ("control character", "control characters", "left out"),
    "homoglyph": ("look-alike letter", "look-alike letters", "read as Latin"),
    "compatibility": ("styled letter", "styled letters", "read as plain"),
    "white_space": ("blank or line break", "blanks and line breaks", "merged"),
}
QUESTIONS = {
    "likely": "is the text too likely for a person?",
    "drawn": "is the text too close to what the model itself would draw?",
    "pair": "is the text likelier to the model than to its observer?",
}
NOT_ALL = "These do not add up to the score: a constant and any other question asked of the text are in it, too."
FactRows = dict[str, str]  # row name to HTML


def facts_html(heading: str, rows: FactRows) -> str:
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items())
    return f'<h3>{heading}</h3><dl class="facts">{items}</dl>'


def sentence(message: str) -> str:
    """Adds the capital letter and the full stop that a message may lack."""
    stripped = message.strip()
    return f"{stripped[:1].upper()}{stripped[1:]}{'' if stripped.endswith(('.', '!', '?')) else '.'}"


def contributions_html(contributions: Sequence[Contribution]) -> str:
    """The parts of the question that leads, which are named as such: they are not the whole of the score."""
    rows = {
        escape_html(sentence(each.meaning).rstrip(".")): f"{each.value:.3f}: {abs(each.log_odds):.2f} "
        f"towards {'a machine' if each.log_odds > 0 else 'a person'}"
        for each in contributions
    }
    heading = f"What weighs in the question that leads, in log-odds: {QUESTIONS[contributions[0].question]}"
    return f'{facts_html(heading, rows)}<p class="hint">{NOT_ALL}</p>'


def measurement_rows(result: ScoreResult) -> FactRows:
    score = result.score
    rows = {METHOD_NAMES[method]: score_text(value) for method, value in score.scores.items() if method != score.method}
    rows["Scored tokens"] = f"{score.scored_tokens:,}{', only the beginning of the text' if score.truncated else ''}"
    if score.windows > 1:
        rows["Windows"] = f"{score.windows:,}"
    if score.statistics is not None:
        rows |= _statistics_rows(score.statistics)
    if score.normalisations:
        rows["Changed before scoring"] = "; ".join(_format_change(change, count) for change, count in score.normalisations.items())
    if result.model:
        rows["Model"] = escape_html(f"{result.model}, {result.precision}")
    calibration = result.calibration
    rows["Calibration"] = escape_html(calibration.source or f"none: {calibration.reason or 'the server gave no reason'}")
    rows["Time"] = f"{result.total_s:.2f} s"
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
