"""Which words a verdict gets, and where a text lies among others."""

import re

import pytest

from app.schemas import Distribution, PassageScore
from tests.ui.score.test_report import SURE, score
from ui.score.bands import BANDS, MEANINGS, NAMES, band_of, meaning_of
from ui.score.curve import curve_html
from ui.score.numbers import of_thousand
from ui.score.plot import Drawn, plot_html


@pytest.mark.parametrize(
    ("verdict", "value", "interval", "band"),
    [
        ("machine", 0.97, (0.9, 1.0), "machine"),
        ("human", 0.02, (0.0, 0.1), "human"),
        ("uncertain", 0.7, (0.55, 0.8), "leans_machine"),
        ("uncertain", 0.7, (0.45, 0.9), "unclear"),
        ("uncertain", 0.6, (0.55, 0.65), "unclear"),
        ("uncertain", 0.3, (0.2, 0.45), "leans_human"),
        ("uncertain", 0.3, (0.1, 0.6), "unclear"),
        ("uncertain", None, None, "unclear"),
        ("uncalibrated", None, None, "unclear"),
        ("insufficient", None, None, "unclear"),
    ],
)
def test_the_band_of_a_verdict(verdict, value, interval, band):
    chance = None if value is None else {"value": value, "interval": interval}
    assert band_of(score(verdict=verdict, p_machine=chance)) == band


def test_no_band_says_who_wrote_a_text():
    assert set(NAMES) == set(MEANINGS) == set(BANDS)
    assert not any(re.search(r"\b(is|was) (AI|machine|human)|written by", words) for words in NAMES.values())


def test_a_text_without_a_verdict_says_what_to_do():
    assert "Add more of it" in meaning_of(score(verdict="insufficient"))
    assert "have not been measured" in meaning_of(score(verdict="uncalibrated"))
    listed = [{"code": "short", "message": "short"}, {"code": "list", "message": "a list"}]
    assert "the warning below says" in meaning_of(score(verdict="uncertain", p_machine=None, warnings=listed))
    assert meaning_of(score(verdict="uncertain", p_machine=None, warnings=listed[:1])) == MEANINGS["unclear"]


@pytest.mark.parametrize(("share", "text"), [(0, "0"), (0.0045, "4.5"), (0.004, "4"), (0.0125, "12"), (0.25, "250"), (1, "1,000")])
def test_a_share_as_so_many_of_a_thousand(share, text):
    assert of_thousand(share) == text


COUNTS = Distribution(
    method="binoculars", tokens="64-128", edges=[0.5, 0.75, 1.0, 1.25, 1.5], human=[0, 10, 60, 30], machine=[50, 40, 10, 0]
)


def test_a_value_is_drawn_where_its_bin_is_with_the_machine_end_on_the_left():
    lower, higher = Drawn(COUNTS, True), Drawn(COUNTS, False)
    assert [lower.place(value) for value in (0.1, 0.5, 0.875, 1.5, 9)] == [0, 0, 0.375, 1, 1]
    assert [higher.place(value) for value in (0.5, 0.875, 1.5)] == [1, 0.625, 0]
    assert (lower.machine, higher.machine) == ([50, 40, 10, 0], [0, 10, 40, 50])


def test_the_share_of_texts_that_are_at_least_as_machine_like():
    lower, higher = Drawn(COUNTS, True), Drawn(COUNTS, False)
    assert (lower.beyond(lower.machine, 1.0), lower.beyond(lower.human, 1.0)) == (0.9, 0.1)
    assert (higher.beyond(higher.machine, 1.0), higher.beyond(higher.human, 1.0)) == (pytest.approx(0.1), 0.9)
    assert lower.beyond(lower.machine, 0.625) == 0.25 and lower.beyond(lower.human, 9) == 1


def test_the_picture_has_both_curves_the_text_the_threshold_and_the_same_in_words():
    html = plot_html(score(**SURE, distribution=COUNTS.model_dump()), 0.75)
    for words in ("100 human texts", "100 machine texts", "this text 0.750", "machine threshold 0.901", "64-128 tokens long"):
        assert words in html
    assert "Fewer than 1 of 100 human texts and about 50 of 100 machine texts of this length are at least as machine-like" in html
    assert html.count("<polygon") == html.count("<polyline") == 2 and 'role="img" aria-label="Binoculars: Fewer than 1' in html
    assert "beyond the end" in plot_html(score(**SURE, distribution=COUNTS.model_dump()), 2.0)


def test_an_older_calibration_has_a_sentence_instead_of_a_picture():
    assert "before distributions were kept" in plot_html(score(**SURE), 0.75)
    assert plot_html(score(verdict="uncalibrated"), 0.75) == ""


def passage(start, value, chance=None, verdict="uncertain"):
    interval = None if chance is None else {"value": chance, "interval": (0.0, 1.0)}
    return PassageScore(start=start, end=start + 100, tokens=80, score=value, verdict=verdict, p_machine=interval)


def test_the_curve_of_passages_has_their_highest_and_their_mean():
    html = curve_html(score(), [passage(0, 0.9, 0.1), passage(100, 0.6, 0.9, "machine"), passage(200, 2.0)], 300)
    assert "most machine-like is passage 2 with 90%, the mean is 50%. 1 passage has none." in html
    assert re.findall(r'<rect class="(\w+)" x="([\d.]+)"', html) == [("unclear", "0.0"), ("machine", "200.0")]


def test_without_probabilities_the_curve_shows_scores_and_the_lowest_where_low_is_machine_like():
    html = curve_html(score(), [passage(0, 0.9), passage(100, 0.6)], 200)
    assert "Score of each of the 2 passages: the most machine-like is passage 2 with 0.600, the mean is 0.750." in html
    assert curve_html(score(), [passage(0, 0.9)], 100) == ""
