"""The step budget, from made-up durations."""

import pytest

from app.engine.budget import DECODE_ONLY_INTERVAL, FLEX_TIME_SHARE, MIN_TOKENS, FlexTime, StepBudget


def measured(decode_s: float = 0.05, prefill_token_s: float = 0.001, score_token_s: float = 0.002) -> StepBudget:
    """A budget that has recorded steps of these durations, with 8 decoding rows."""
    budget = StepBudget(512, 3.0)
    for _ in range(20):
        budget.record(8, 0, 0, decode_s)
        budget.record(8, 40, 0, decode_s + 40 * prefill_token_s)
        budget.record(8, 0, 40, decode_s + 40 * score_token_s)
    return budget


def test_without_decoding_rows_prompts_and_texts_may_use_the_whole_budget() -> None:
    assert measured().token_limits(0, 5) == (512, 512)


def test_prompts_use_the_time_that_stretch_allows_and_texts_a_share_of_it() -> None:
    prefill_tokens, score_tokens = measured().token_limits(8, 1)
    assert prefill_tokens == pytest.approx(0.05 * 2 / 0.001 * (1 + 1 / 8 + 1 / 64), abs=1)
    assert score_tokens == pytest.approx(0.05 * 2 * 0.3 / 0.002, abs=1)


def test_the_more_prompts_wait_the_more_tokens_they_get() -> None:
    assert [measured().token_limits(8, count)[0] for count in (4, 8, 24)] == [pytest.approx(175, abs=1), pytest.approx(300, abs=1), 512]


@pytest.mark.parametrize("decode_rows", [5, 15, 1, 64])
def test_a_number_of_rows_that_was_not_measured_uses_the_nearest_that_was(decode_rows: int) -> None:
    limit = min(512, 100 * (1 + 1 / decode_rows + 1 / decode_rows**2))
    assert measured().token_limits(decode_rows, 1)[0] == pytest.approx(limit, abs=1)


def test_some_prefill_tokens_may_join_however_slow_the_device_is() -> None:
    assert measured(prefill_token_s=1.0).token_limits(8, 1)[0] == MIN_TOKENS


@pytest.mark.parametrize("score_token_s", [0.0005, 0.002, 0.01, 0.2])
def test_texts_get_their_share_of_the_time_over_many_steps(score_token_s: float) -> None:
    """However long a token takes: where a step has no time for `MIN_TOKENS`, they join one of the next."""
    budget, tokens = measured(score_token_s=score_token_s), 0
    for _ in range(8000):
        limit = budget.token_limits(8, 0)[1]
        assert limit == 0 or limit >= MIN_TOKENS
        budget.record(8, 0, limit, 0.05 + limit * score_token_s)
        tokens += limit
    assert tokens * score_token_s == pytest.approx(8000 * (1 - 1 / DECODE_ONLY_INTERVAL) * 0.05 * 2 * 0.3, rel=0.05)


def test_texts_that_come_late_do_not_get_the_time_that_nobody_used() -> None:
    budget = measured(score_token_s=0.01)
    assert max(budget.token_limits(8, 0)[1] for _ in range(100)) <= 2 * MIN_TOKENS


def test_the_whole_budget_may_be_used_before_anything_was_measured() -> None:
    assert StepBudget(512, 3.0).token_limits(8, 1) == (512, 512)


def test_at_regular_intervals_the_decoding_rows_run_alone() -> None:
    budget = measured()
    assert [budget.token_limits(8, 1) == (0, 0) for _ in range(2 * DECODE_ONLY_INTERVAL)].count(True) == 2


def test_a_step_with_both_prompts_and_texts_changes_no_estimate() -> None:
    budget = measured()
    before = budget.token_limits(8, 1)
    budget.record(8, 10, 10, 100.0)
    assert budget.token_limits(8, 1) == before


def test_a_short_prompt_alone_in_a_step_changes_no_estimate() -> None:
    budget = measured()
    before = budget.token_limits(8, 1)
    budget.record(0, 2, 0, 1.0)
    assert budget.token_limits(8, 1) == before


def test_flex_work_takes_its_share_of_the_time_of_people() -> None:
    flex, joined_steps = FlexTime(), 0
    flex.record(4, decode_only=True, joined=False, step_s=0.01)
    for _ in range(3000):
        joins = flex.allows(4)
        flex.record(4, decode_only=not joins, joined=joins, step_s=0.016 if joins else 0.01)
        joined_steps += joins
    assert joined_steps * 0.006 == pytest.approx(3000 * 0.01 * FLEX_TIME_SHARE, rel=0.1)


def test_flex_work_that_costs_less_than_its_share_joins_every_step() -> None:
    flex = FlexTime()
    flex.record(4, decode_only=True, joined=False, step_s=0.01)
    for _ in range(100):
        assert flex.allows(4)
        flex.record(4, decode_only=True, joined=True, step_s=0.0125)


def test_flex_work_stays_away_until_a_step_of_people_alone_was_measured() -> None:
    flex = FlexTime()
    flex.record(4, decode_only=True, joined=False, step_s=0.01)
    flex.record(5, decode_only=False, joined=False, step_s=0.01)
    assert (flex.allows(4), flex.allows(5), flex.allows(6)) == (True, False, False)


def test_flex_work_that_took_long_stays_away_until_people_have_had_their_time() -> None:
    flex = FlexTime()
    flex.record(4, decode_only=True, joined=False, step_s=0.01)
    flex.record(4, decode_only=False, joined=True, step_s=0.01 + 0.03 * 20)
    away = 0
    while not flex.allows(4):
        flex.record(4, decode_only=True, joined=False, step_s=0.01)
        away += 1
    assert away == pytest.approx(0.03 * 20 / (0.01 * FLEX_TIME_SHARE), abs=1)
