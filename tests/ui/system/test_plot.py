import re
import xml.etree.ElementTree as ET

import pytest

from tests.ui.system.test_history import history
from ui.system.history import KEPT_S
from ui.system.plot import BOTTOM, LEFT, RIGHT, TOP, Plot, nice_top, span_of


def paths(html: str) -> list[str]:
    return re.findall(r'<path class="line l\d" d="([^"]*)"/>', html.partition("<ul")[0])


def test_a_line_goes_from_left_to_now_and_from_the_axis_to_its_top() -> None:
    html = Plot("Use", "cores", {"a": [(-300.0, 0.0), (-150.0, 10.0), (0.0, 5.0)]}).html()
    assert paths(html) == [f"M{LEFT:.1f} {BOTTOM:.1f}L{(LEFT + RIGHT) / 2:.1f} {TOP:.1f}L{RIGHT:.1f} {(TOP + BOTTOM) / 2:.1f}"]
    assert all(f">{tick}</text>" in html for tick in ("0", "5", "10", "now", "minutes ago"))
    assert "minutes ago" in html and "<b>Use</b>" in html and "cores" in html


def test_at_first_one_minute_is_drawn() -> None:
    html = Plot("Use", "cores", {"a": [(-30.0, 1.0), (0.0, 1.0)]}, span_s=60.0).html()
    assert paths(html) == [f"M{(LEFT + RIGHT) / 2:.1f} {TOP:.1f}L{RIGHT:.1f} {TOP:.1f}"]
    assert ">45</text>" in html and "seconds ago" in html and "over the last 1 minute;" in html
    young, old = history((1000, 0), (1060, 1)), history((1000, 0), (1061, 1))
    assert (span_of(()), span_of(young), span_of(old)) == (60.0, 60.0, KEPT_S)


def test_a_gap_is_not_drawn_over_and_a_lone_value_is_a_dot() -> None:
    html = Plot("Use", "", {"a": [(-4.0, 1.0), (-3.0, 1.0), (-2.0, None), (-1.0, 1.0), (0.0, None)]}).html()
    (path,) = paths(html)
    assert path.count("M") == 2 and path.count("L") == 1
    assert html.count("<circle") == 1


def test_a_screen_reader_hears_what_is_now_and_names_are_escaped() -> None:
    html = Plot("Use", "cores", {"<a> {b}": [(-2.0, 1.0), (0.0, 2.5)], "gone": [(-2.0, 1.0), (0.0, None)]}).html()
    assert 'aria-label="Use, cores, over the last 5 minutes; now: &lt;a&gt; &#123;b&#125; 2.5, gone none"' in html
    assert "<a>" not in html and "{" not in html
    ET.fromstring(html)  # every tag is closed


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(-1.0, None), (0.0, None)]}])
def test_without_a_value_it_says_why_nothing_is_drawn(series: dict[str, list[tuple[float, float | None]]]) -> None:
    html = Plot("Use", "cores", series, empty="Nobody asked.").html()
    assert "Nobody asked." in html and "<svg" not in html


@pytest.mark.parametrize(
    ("value", "top"), [(1, 1), (1.01, 2), (3, 4), (4.2, 5), (7, 10), (0.013, 0.02), (812e6, 1e9), (20, 20), (0.3, 0.4)]
)
def test_an_axis_ends_at_a_short_number(value: float, top: float) -> None:
    assert nice_top(value) == pytest.approx(top)


def test_more_lines_than_styles_begin_again_with_the_first() -> None:
    html = Plot("Use", "", {str(index): [(-1.0, 1.0), (0.0, 1.0)] for index in range(8)}).html()
    assert re.findall(r'class="line l(\d)"', html.partition("<ul")[0]) == list("01234501")
