"""The loss curve: what is read of the events, and where it is drawn."""

import re

import pytest

from tests.ui.fakejobs import metrics
from ui.jobs.client import Event
from ui.jobs.curve import NOTHING_YET, Axis, Losses, curve_html, losses_of


def events(steps: int, total: int) -> list[Event]:
    return [Event.model_validate(event) for event in metrics(steps, total)][::-1]


def test_losses_are_read_by_step_and_what_is_no_number_is_left_out() -> None:
    odd = [
        Event(id="a", type="metrics", data={"step": 3, "train_loss": None}),
        Event(id="b", message="Step 9"),
        Event(id="c", type="metrics"),
    ]
    nan = Event.model_validate_json('{"id": "d", "type": "metrics", "data": {"step": 4, "train_loss": NaN}}'.replace("NaN", '"NaN"'))
    losses = losses_of([*odd, nan, *events(10, 40)])
    assert losses.train[0] == (1, 3.5) and len(losses.train) == 10
    assert [step for step, _ in losses.valid] == [5, 10] and (losses.steps, losses.last_step) == (40, 10)


def test_both_lines_have_a_legend_and_words_for_those_who_do_not_see_them() -> None:
    html = curve_html(losses_of(events(10, 40)))
    assert 'aria-label="Loss up to step 10 of 40: training from 3.500 to 2.150; validation from 2.480 to 2.340"' in html
    assert "training <b>2.150</b>" in html and "validation <b>2.340</b>" in html
    assert html.count('class="line l0"') == html.count('class="line l1"') == 2
    assert NOTHING_YET in curve_html(Losses())


def test_a_long_line_has_its_ends_and_a_bounded_number_of_points() -> None:
    html = curve_html(losses_of(events(3000, 3000)))
    path = re.findall(r'class="line l0" d="(M[^"]+)"', html)[0]
    assert 400 <= path.count("L") <= 1000 and path.startswith("M52.2 ") and "L548.0 " in path


def test_a_job_of_one_step_or_of_equal_losses_is_drawn() -> None:
    for losses in (Losses(((1, 2.0),), (), 1), Losses(((1, 0.0), (2, 0.0)), ((2, 0.0),), 2)):
        numbers = re.findall(r"[MLxy\d\"=]([\d.]+) ([\d.]+)", curve_html(losses))
        assert numbers and all(0 <= float(value) <= 600 for pair in numbers for value in pair)


@pytest.mark.parametrize(("low", "high"), [(2.0, 3.5), (0.01, 0.013), (4.0, 4.0), (0.0, 0.0), (1.9, 12.5), (0.0, 900.0)])
def test_the_scale_has_round_lines_around_all_losses(low: float, high: float) -> None:
    ticks = Axis(low, high, 10).ticks
    assert 2 <= len(ticks) <= 8 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert f"{Axis(low, high, 10).spacing:e}"[0] in "125"
