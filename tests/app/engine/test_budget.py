"""The budget of guests, from made-up durations."""

import pytest

from app.engine.budget import BREATH, LEAST, Pace


def taught(alone_s: float = 0.05, prompt_s: float = 0.001, text_s: float = 0.002) -> Pace:
    pace = Pace(512, 3.0)
    for _ in range(20):
        pace.learn(8, 0, 0, alone_s)
        pace.learn(8, 40, 0, alone_s + 40 * prompt_s)
        pace.learn(8, 0, 40, alone_s + 40 * text_s)
    return pace


def test_without_decoding_rows_the_whole_budget_is_theirs() -> None:
    assert taught().room(0, 5) == (512, 512)


def test_guests_take_what_the_stretch_leaves_and_texts_a_part_of_it() -> None:
    prompts, texts = taught().room(8, 1)
    assert prompts == pytest.approx(0.05 * 2 / 0.001 * (1 + 1 / 8 + 1 / 64), abs=1)
    assert texts == pytest.approx(0.05 * 2 * 0.3 / 0.002, abs=1)


def test_the_more_wait_the_more_their_time_counts() -> None:
    assert [taught().room(8, count)[0] for count in (4, 8, 24)] == [pytest.approx(175, abs=1), pytest.approx(300, abs=1), 512]


@pytest.mark.parametrize("decodes", [5, 15, 1, 64])
def test_what_is_not_known_for_a_number_of_rows_is_taken_from_the_nearest(decodes: int) -> None:
    assert taught().room(decodes, 1)[0] == pytest.approx(min(512, 100 * (1 + 1 / decodes + 1 / decodes**2)), abs=1)


def test_however_slow_the_device_some_tokens_may_join() -> None:
    assert taught(prompt_s=1.0, text_s=1.0).room(8, 1) == (LEAST, LEAST)


def test_before_anything_is_known_the_whole_budget_is_theirs() -> None:
    assert Pace(512, 3.0).room(8, 1) == (512, 512)


def test_every_so_often_the_decoding_rows_run_alone() -> None:
    pace = taught()
    assert [pace.room(8, 1) == (0, 0) for _ in range(2 * BREATH)].count(True) == 2


def test_a_step_with_guests_of_both_kinds_teaches_nothing() -> None:
    pace = taught()
    before = pace.room(8, 1)
    pace.learn(8, 10, 10, 100.0)
    assert pace.room(8, 1) == before


def test_a_prompt_of_a_few_tokens_by_itself_is_not_taken_for_the_price_of_a_token() -> None:
    pace = taught()
    before = pace.room(8, 1)
    pace.learn(0, 2, 0, 1.0)
    assert pace.room(8, 1) == before
