"""A result as one row of the page's table and of its exports: a hash of the text, never the text. Pure."""

from typing import Any

from app.schemas import Score, ScoreFailure
from ui.flags.flag import hash_of
from ui.score.bands import NAMES, band_of, meaning_of


def row_of(item: Score | ScoreFailure, text: str, made_by: dict[str, str | None]) -> dict[str, Any]:
    """`made_by`: model, precision and calibration. Numbers are those of the server, unrounded; None where there is none."""
    row: dict[str, Any] = {"hash": hash_of(text), **made_by}
    if isinstance(item, ScoreFailure):
        return {**row, "error": item.message}
    rate, chance = item.false_positive_rate, item.p_machine
    band = band_of(item)
    return {
        **row,
        "band": band,
        "verdict": NAMES[band],
        "meaning": meaning_of(item),
        "probability": chance and chance.value,
        "low": chance and chance.interval[0],
        "high": chance and chance.interval[1],
        "method": item.method,
        "score": item.scores.get(item.method),
        "direction": item.direction,
        "threshold": item.threshold,
        "false_positive_rate": rate and rate.measured,
        "n": rate and rate.n,
        "tokens": item.scored_tokens,
        "truncated": item.truncated,
        "warnings": [warning.message for warning in item.warnings],
    }
