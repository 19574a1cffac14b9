import pytest

from app.schemas import Score, UsedCalibration
from tests.ui.fakelitmus import EXPLANATION, SOURCE, score_result
from ui.client import ScoreResult
from ui.telegram.verdict import CAVEAT, headline, verdict_text

TEXT = "A fox met a crow."


def result(**changes) -> ScoreResult:
    return ScoreResult(Score.model_validate(score_result(TEXT, **changes)), UsedCalibration(source=SOURCE, reason=None), 0.1)


def test_words_come_first_then_numbers_then_limits():
    rate = {"target": 0.01, "measured": 0.008, "interval": (0.004, 0.014), "n": 2000, "tokens": "64-128"}
    text = verdict_text(
        result(threshold=0.9, p_machine={"value": 0.995, "interval": (0.9, 0.999)}, false_positive_rate=rate),
        TEXT,
    )
    assert text.split("\n\n") == [
        "Reads like machine text.",
        EXPLANATION,
        "Binoculars score: 0.742 (machine verdict: below 0.900)\n"
        "Probability of machine text, if half of all texts were: over 99% (95% interval 90% to over 99%)\n"
        "Wrongly flagged at this threshold: 0.8% of 2,000 human texts of 64-128 tokens (95% interval 0.4% to 1.4%)\n"
        "Perplexity: 22.200\n"
        "Scored tokens: 5\n"
        f"Calibration: {SOURCE}",
        CAVEAT,
    ]


@pytest.mark.parametrize(
    ("verdict", "probability", "words"),
    [
        ("human", None, "Reads like human text"),
        ("uncertain", None, "Cannot tell"),
        ("uncertain", (0.8, 0.6, 0.9), "Leans towards machine text"),
        ("uncertain", (0.8, 0.4, 0.9), "Cannot tell"),
        ("uncertain", (0.2, 0.1, 0.4), "Leans towards human text"),
        ("uncertain", (0.5, 0.45, 0.55), "Cannot tell"),
        ("uncalibrated", None, "No verdict: this model is not calibrated"),
        ("insufficient", (0.9, 0.8, 0.95), "Too short to judge"),
    ],
)
def test_the_headline_claims_no_more_than_the_server_does(verdict, probability, words):
    p_machine = None if probability is None else {"value": probability[0], "interval": probability[1:]}
    assert headline(result(verdict=verdict, p_machine=p_machine).score).startswith(words)


def test_warnings_and_hints_are_shown():
    text = verdict_text(result(warnings=[{"code": "short", "message": "the text is short"}]), TEXT, "Send a file.")
    assert "Mind:\n• The text is short.\n• Send a file.\n" in text


def test_passages_of_a_long_text_are_named_by_their_beginning():
    passages = [{"start": 0, "end": 5, "tokens": 70, "score": 0.6, "verdict": "machine"}] * 14
    text = verdict_text(result(passages=passages, truncated=True), TEXT)
    assert text.count("• “A fox” (70 tokens): reads like machine text") == 12 and "• and 2 more" in text
    assert "only the beginning" in text


def test_a_score_of_nothing_has_no_number():
    assert "Binoculars score: none" in verdict_text(result(scores={"binoculars": None}, verdict="insufficient", statistics=None), TEXT)


@pytest.mark.parametrize("verdict", ["insufficient", "uncalibrated"])
def test_without_a_verdict_the_calibration_is_left_out(verdict):
    assert "Calibration" not in verdict_text(result(verdict=verdict), TEXT) and f"Calibration: {SOURCE}" in verdict_text(result(), TEXT)
