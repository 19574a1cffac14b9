"""Translates what the server said of one text into HTML: verdict, gauge, explanation, how sure that is, cautions, and the text itself.

Pure, and decides nothing: the verdict and its reasons are the server's.
"""

from app.schemas import Change, Rate, Score, Statistics, UsedCalibration, Verdict
from ui import highlight
from ui.client import Scored
from ui.gauge import METHODS, gauge, number
from ui.messages import escaped

VERDICTS: dict[Verdict, str] = {
    "machine": "Likely machine-written",
    "human": "Likely human-written",
    "uncertain": "Uncertain",
    "uncalibrated": "Not calibrated",
    "insufficient": "Too short to judge",
}
CHANGES: dict[Change, tuple[str, str, str]] = {  # one of them, several, what was done
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
Rows = dict[str, str]  # names to HTML


def report(scored: Scored, text: str, model: str | None = None) -> str:
    """`text` is what was sent, `model` whose score it is, where several are served. What no scored token covers, its first token among it,
    is shown uncoloured."""
    score = scored.score
    value = score.scores.get(score.method)
    parts = [_verdict(score, value, model)]
    if value is not None:
        parts.append(gauge(score.method, value, score.direction, score.threshold))
    parts += [f'<p class="explanation">{escaped(score.explanation)}</p>', _warnings(score)]
    parts += [_facts("How sure", _certainty(score, scored.calibration)), _facts("Measured", _measured(score, scored.total_s))]
    if score.sentences and len(score.sentences) > 1:
        parts.append(highlight.sentences(score, score.sentences, text))
    if score.tokens:
        parts.append(highlight.tokens(score.tokens, text))
    return f'<section class="report" aria-label="Result">{"".join(parts)}</section>'


def idle() -> str:
    return '<p class="status">Paste a text and press Score. The result appears here.</p>'


def scoring() -> str:
    return '<p class="status busy" role="status">Scoring the text</p>'


def caveat() -> str:
    return f'<p class="caveat">{CAVEAT}</p>'


def _verdict(score: Score, value: float | None, model: str | None) -> str:
    by = f" by {escaped(model)}" if model is not None else ""
    return (
        f'<div class="verdict"><strong class="badge {score.verdict}">{VERDICTS[score.verdict]}</strong>'
        f"<span>{METHODS[score.method]} <b>{_maybe(value)}</b>{by}</span></div>"
    )


def _maybe(value: float | None) -> str:
    return "no score" if value is None else number(value)


def _warnings(score: Score) -> str:
    items = "".join(f"<li>{escaped(_sentence(warning.message))}</li>" for warning in score.warnings)
    return f'<h3>Take care</h3><ul class="warnings">{items}</ul>' if items else ""


def _sentence(message: str) -> str:
    words = message.strip()
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith(('.', '!', '?')) else '.'}"


def _facts(heading: str, rows: Rows) -> str:
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows.items())
    return f'<h3>{heading}</h3><dl class="facts">{items}</dl>'


def _certainty(score: Score, calibration: UsedCalibration) -> Rows:
    rows = {}
    if score.p_machine is not None:
        low, high = score.p_machine.interval
        rows["Probability of a machine, were half of all texts a machine’s"] = (
            f"{_chance(score.p_machine.value)}, 95% interval {_chance(low)} to {_chance(high)}"
        )
    if score.threshold is not None:
        side = "below" if score.direction == "lower" else "above"
        rows["Machine’s border"] = f"{side} {number(score.threshold)}"
    if score.false_positive_rate is not None:
        rows["Human texts taken for a machine’s"] = _rate(score.false_positive_rate)
    rows["Calibration"] = escaped(calibration.source or f"none: {calibration.reason or 'no reason was given'}")
    return rows


def _chance(value: float) -> str:
    """Two digits, and never a certainty."""
    return "over 0.99" if value > 0.99 else "under 0.01" if value < 0.01 else f"{value:.2f}"


def _rate(rate: Rate) -> str:
    """Measured, asked for, and on what, as far as it is known."""
    aimed = "" if rate.target is None else f"aimed at {_percent(rate.target)}"
    texts = escaped(f"texts of {rate.tokens} tokens")
    if rate.measured is None:
        return ", ".join(part for part in (aimed, f"published without a measurement; {texts}") if part)
    of = "" if rate.n is None else f" of {rate.n:,}"
    interval = "" if rate.interval is None else f"95% interval {_percent(rate.interval[0])} to {_percent(rate.interval[1])}"
    return ", ".join(part for part in (f"{_percent(rate.measured)}{of}", interval, aimed, texts) if part)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _measured(score: Score, total_s: float) -> Rows:
    rows = {METHODS[method]: _maybe(value) for method, value in score.scores.items() if method != score.method}
    rows["Scored tokens"] = f"{score.scored_tokens:,}{', only the beginning of the text' if score.truncated else ''}"
    if score.windows > 1:
        rows["Windows"] = f"{score.windows:,}"
    if score.statistics is not None:
        rows |= _statistics(score.statistics)
    if score.normalisations:
        rows["Read differently than sent"] = "; ".join(_change(change, count) for change, count in score.normalisations.items())
    rows["Time"] = f"{total_s:.2f} s"
    return rows


def _statistics(means: Statistics) -> Rows:
    rows = {
        "Perplexity of the text": number(means.perplexity),
        "Log-perplexity": f"{means.log_perplexity:.3f}",
        "Mean log-rank": f"{means.mean_log_rank:.3f}",
        "Mean entropy": f"{means.mean_entropy:.3f} nats",
    }
    return rows if means.cross_entropy is None else {**rows, "Cross-entropy": f"{means.cross_entropy:.3f}"}


def _change(change: Change, count: int) -> str:
    one, several, done = CHANGES[change]
    return f"{count:,} {one if count == 1 else several} {done}"
