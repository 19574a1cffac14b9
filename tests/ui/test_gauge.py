import re

import pytest

from ui.gauge import Axis, gauge


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


def test_the_needle_and_the_ticks_of_a_rising_score():
    shown = gauge("fast_detect", 5.0, "higher", None)
    assert 'class="needle" style="left:25.0%"' in shown
    assert re.findall(r'class="tick" style="left:([\d.]+)%[^>]*>([-\d.]+)<', shown) == [
        ("100.0", "-4"), ("75.0", "-1"), ("50.0", "2"), ("25.0", "5"), ("0.0", "8"),
    ]  # fmt: skip
    assert "higher is more machine-like" in shown


def test_a_score_beyond_the_axis_says_so():
    assert "beyond the end of this axis" in gauge("binoculars", 7.0, "lower", None)
    assert "beyond the end of this axis" not in gauge("binoculars", 0.75, "lower", None)


def test_perplexity_is_drawn_by_its_powers():
    shown = gauge("perplexity", 100.0, "lower", None)
    assert 'class="needle" style="left:50.0%"' in shown
    assert re.findall(r'class="tick"[^>]*>([\d]+)<', shown) == ["1", "10", "100", "1000", "10000"]


def test_an_enormous_number_stays_short():
    assert "1.01e+304" in gauge("perplexity", 1.014e304, "lower", None)


@pytest.mark.parametrize(("direction", "percent"), [("lower", "40.0"), ("higher", "60.0")])
def test_the_border_is_drawn_and_said_where_it_is_known(direction, percent):
    shown = gauge("binoculars", 0.75, direction, 0.9)
    assert f'<i class="border" style="left:{percent}%">' in shown
    assert ">machine’s border 0.900<" in shown
    assert "; the border of a machine verdict is 0.900" in shown
    assert "border" not in gauge("binoculars", 0.75, direction, None)
