"""Translates the score of one text into HTML, in the order in which it should be read: verdict in words, what it means, numbers, picture.

Pure, and decides nothing: the verdict and its reasons come from the server (`ui.score.bands` says which words a verdict gets).
"""

import json
from pathlib import Path

from app.schemas import Score
from ui.client import ScoreResult
from ui.markup import escape_html
from ui.score.bands import BANDS, NAMES, SHORT, band_of, meaning_of
from ui.score.facts import contributions_html, facts_html, measurement_rows, sentence
from ui.score.gauge import METHOD_NAMES, gauge_html
from ui.score.numbers import probability_text, rate_text, score_text, threshold_text
from ui.score.plot import plot_html
from ui.score.row import row_of
from ui.score.views import views_html

FLAG_FORM = Path(__file__).with_name("flag.html").read_text(encoding="utf-8")
MAX_CHARACTERS_PER_WORD = 20  # more means that no blanks divide the words
CHANGED = '<p class="changed" role="status"></p>'  # result.js fills it
CAVEAT = (
    "A score is not a proof, and no share of the text: “80%” does not mean that four fifths of it are machine text. Detectors are often "
    "wrong about short texts, writers whose first language is not English, famous or quoted texts, and machine text that was edited or "
    "paraphrased. Never decide about a person by this number alone."
)


def report_html(result: ScoreResult, text: str, flags: bool = False) -> str:
    """The whole report.

    `text` is what was sent; the parts that no scored token covers (always its first token) are shown uncoloured. `flags`: the visitor may
    say that the verdict is wrong.
    """
    score = result.score
    value = score.scores.get(score.method)
    parts = [CHANGED, _verdict_html(score), _numbers_html(score, value)]
    if value is not None:
        picture = plot_html(score, value)
        parts.append(picture if score.distribution else gauge_html(score.method, value, score.direction, score.threshold) + picture)
    parts += [_warnings_html(score), f'<p class="explanation">{escape_html(score.explanation)}</p>', views_html(score, text)]
    parts.append(_actions_html(flags))
    if score.contributions:
        parts.append(contributions_html(score.contributions))
    parts.append(facts_html("Measurements", measurement_rows(result)))
    return f'<section class="report" aria-label="Result" data-row="{_row(result, text)}">{"".join(parts)}</section>'


def idle_html() -> str:
    return '<p class="status">Paste a text and press Score. The result appears here.</p>'


def amount(text: str) -> str:
    """In words; in characters where the script puts no blanks between words."""
    words = len(text.split())
    if len(text) > MAX_CHARACTERS_PER_WORD * words:
        return f"{len(text):,} characters"
    return f"{words:,} word{'' if words == 1 else 's'}"


def scoring_html(text: str, elapsed_s: float) -> str:
    """Counts the seconds, so that a long text does not look like a page that hangs."""
    waited = f", {elapsed_s:.0f} s so far" if elapsed_s >= 1 else ""
    return (
        f'<div class="working"><p class="status" role="status">Scoring {amount(text)}{waited}.</p>'
        f'<progress aria-label="Scoring"></progress></div>'
    )


def loading_html(sentence: str) -> str:
    """While the server loads its model, before it scores."""
    return (
        f'<div class="working"><p class="status" role="status">{escape_html(sentence)} Your text is scored when it is ready.</p>'
        f'<progress aria-label="Loading"></progress></div>'
    )


def cancelled_html() -> str:
    return '<p class="status" role="status">Cancelled. Press Score to start again.</p>'


def caveat_html() -> str:
    return f'<p class="caveat">{CAVEAT}</p>'


def _row(result: ScoreResult, text: str) -> str:
    made_by = {"model": result.model, "precision": result.precision, "calibration": result.calibration.source}
    return escape_html(json.dumps(row_of(result.score, text, made_by)))


def _verdict_html(score: Score) -> str:
    band = band_of(score)
    steps = "".join(f'<li class="{name}"{" aria-current=true" if name == band else ""}>{SHORT[name]}</li>' for name in BANDS)
    return (
        f'<h2 class="verdict {band}">{NAMES[band]}</h2><ol class="bands" aria-label="Five bands">{steps}</ol>'
        f'<p class="meaning">{meaning_of(score)}</p>'
    )


def _numbers_html(score: Score, value: float | None) -> str:
    rows = {
        "Probability of machine text": probability_text(score),
        f"{METHOD_NAMES[score.method]} score": score_text(value),
        "Threshold of a machine verdict": threshold_text(score),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{known}</dd></div>" for name, known in rows.items() if known is not None)
    assumed = "The probability assumes that half of all texts are machine text. " if score.p_machine else ""
    rate = rate_text(score.false_positive_rate) if score.false_positive_rate else ""
    return f'<dl class="facts numbers">{items}</dl>' + (f'<p class="rate">{assumed}{escape_html(rate)}</p>' if assumed or rate else "")


def _warnings_html(score: Score) -> str:
    items = "".join(f"<li>{escape_html(sentence(warning.message))}</li>" for warning in score.warnings)
    return f'<h3>Warnings</h3><ul class="warnings">{items}</ul>' if items else ""


def _actions_html(flags: bool) -> str:
    """Buttons that `result.js` serves: exports of the result, without the text, and the note on a wrong verdict."""
    save = '<button type="button" data-save="html">Save report</button> <button type="button" data-save="json">Save numbers (JSON)</button>'
    return f'<div class="report-actions">{save}{FLAG_FORM if flags else ""}</div>'
