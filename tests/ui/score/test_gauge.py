import re

import pytest

from ui.score.gauge import Axis, gauge_html


@pytest.mark.parametrize(
    ("value", "direction", "percent"),
    [
        (0.5, "lower", 0),
        (1.0, "lower", 50),
        (1.5, "lower", 100),
        (0.5, "higher", 100),
        (1.25, "higher", 25),
        (-3, "lower", 0),
        (9, "lower", 100),
    ],
)
def test_the_machine_end_of_the_axis_is_on_the_left(value, direction, percent):
    assert Axis(0.5, 1.5).position(value, direction) == pytest.approx(percent)


def test_needle_and_ticks_where_a_higher_score_is_machine_like():
    html = gauge_html("fast_detect", 5.0, "higher", None)
    assert 'class="needle" style="left:25.0%"' in html
    assert re.findall(r'class="tick" style="left:([\d.]+)%[^>]*>([-\d.]+)<', html) == [
        ("100.0", "-4"), ("75.0", "-1"), ("50.0", "2"), ("25.0", "5"), ("0.0", "8"),
    ]  # fmt: skip
    assert "higher is more machine-like" in html


def test_the_label_says_that_a_score_is_beyond_the_axis():
    assert "beyond the end of this axis" in gauge_html("binoculars", 7.0, "lower", None)
    assert "beyond the end of this axis" not in gauge_html("binoculars", 0.75, "lower", None)


def test_perplexity_has_a_logarithmic_axis():
    html = gauge_html("perplexity", 100.0, "lower", None)
    assert 'class="needle" style="left:50.0%"' in html
    assert re.findall(r'class="tick"[^>]*>([\d]+)<', html) == ["1", "10", "100", "1000", "10000"]


def test_a_very_large_score_is_shortened():
    assert "1.01e+304" in gauge_html("perplexity", 1.014e304, "lower", None)


@pytest.mark.parametrize(("direction", "percent"), [("lower", "40.0"), ("higher", "60.0")])
def test_a_known_threshold_is_drawn_and_in_the_label(direction, percent):
    html = gauge_html("binoculars", 0.75, direction, 0.9)
    assert f'<i class="threshold" style="left:{percent}%">' in html
    assert ">machine threshold 0.900<" in html
    assert "; the threshold of a machine verdict is 0.900" in html
    assert "threshold" not in gauge_html("binoculars", 0.75, direction, None)
