"""What a step of so many rows costs, from made-up durations."""

import pytest

from app.engine.costs import FIRST_ROW, KEPT_STEPS, OBSERVATIONS, RowCosts


def measured(*steps: tuple[int, float]) -> RowCosts:
    costs = RowCosts()
    for rows, step_s in steps:
        costs.record(rows, step_s)
    return costs


@pytest.mark.parametrize(("rows", "step_s"), [(1, 0.010), (2, 0.012), (6, 0.020), (8, 0.024), (16, 0.040), (32, 0.072)])
def test_a_step_of_any_number_of_rows_lies_on_a_line_between_those_that_were_measured(rows: int, step_s: float) -> None:
    assert measured((4, 0.016), (1, 0.010), (16, 0.040)).step_s(rows) == pytest.approx(step_s)


def test_a_guess_is_made_from_one_number_of_rows() -> None:
    assert RowCosts().step_s(1) is None
    assert measured((3, 0.02)).step_s(3) == pytest.approx(0.02)
    assert measured((3, 0.02)).step_s(11) == pytest.approx(0.02 * (FIRST_ROW + 11) / (FIRST_ROW + 3))


def test_more_rows_never_cost_less() -> None:
    assert measured((2, 0.02), (8, 0.01)).step_s(4) == 0.02


def test_a_step_that_was_disturbed_says_nothing() -> None:
    steps = [(1, 0.01)] * OBSERVATIONS + [(8, 0.02), (8, 0.5), (8, 0.02), (8, 0.7)]
    assert measured(*steps).step_s(8) == pytest.approx(0.02)


def test_a_machine_that_became_slower_or_faster_is_noticed() -> None:
    for before, after in ((0.01, 0.03), (0.03, 0.01)):
        costs = measured(*[(1, 0.005)] * 3, *[(8, before)] * OBSERVATIONS, *[(8, after)] * OBSERVATIONS)
        assert costs.step_s(8) == pytest.approx(after)


def test_what_was_not_measured_for_long_is_forgotten() -> None:
    costs = measured((8, 0.5), *[(1, 0.01)] * (KEPT_STEPS - 1))
    assert costs.step_s(8) == pytest.approx(0.5)
    costs.record(1, 0.01)
    assert costs.step_s(8) == pytest.approx(0.01 * (FIRST_ROW + 8) / (FIRST_ROW + 1))
