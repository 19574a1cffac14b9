"""How often drafted tokens are kept, from made-up drafts."""

import pytest

from app.engine.acceptance import DRAWN_GUESS, FIRST_GUESS, Acceptance, DrawAcceptance, FirstGuess


def measured(match: int, kept: int, of: int, prior: Acceptance | None = None) -> Acceptance:
    """After `of` drafts of one token each behind matches of `match` tokens."""
    acceptance = Acceptance(prior or FirstGuess())
    for trial in range(of):
        acceptance.record(match, [1], [1 if trial % of < kept else 2])
    return acceptance


def test_what_is_measured_replaces_the_guess() -> None:
    assert measured(2, 0, 0).chance(2) == pytest.approx(FIRST_GUESS[2])
    assert measured(2, 200, 200).chance(2) > 0.85
    assert measured(9, 0, 200).chance(9) < 0.2
    assert measured(2, 200, 200).chance(9) == pytest.approx(FIRST_GUESS[4]), "short matches say nothing about long ones"


def test_a_request_begins_with_what_others_have_shown() -> None:
    others = measured(4, 100, 100)
    assert Acceptance(others).chance(4) == pytest.approx(others.chance(4))
    assert measured(4, 0, 20, others).chance(4) < others.chance(4) / 2


def test_a_match_grows_with_each_token_that_is_kept() -> None:
    acceptance = Acceptance(FirstGuess())
    short, mean, long = FIRST_GUESS[2:5]
    assert acceptance.chances(3, 6) == pytest.approx(
        [short, short * mean, short * mean**2, short * mean**3, short * mean**4, short * mean**4 * long]
    )
    acceptance.record(3, [1, 2, 3, 4], [1, 2, 9, 4])  # behind 3 and 4 tokens right, behind 5 wrong, then nothing is known
    assert acceptance.chance(3) > short and acceptance.chance(9) == pytest.approx(long)
    assert acceptance.chance(4) == pytest.approx((0.97 * 1 + 6 * mean) / (0.97 + 1 + 6))


def test_only_tokens_that_came_are_counted() -> None:
    acceptance = Acceptance(FirstGuess())
    acceptance.record(3, [1, 2, 3], [1])
    assert acceptance.chance(3) > FIRST_GUESS[2] and acceptance.chance(4) == pytest.approx(FIRST_GUESS[3])


def test_of_drawn_tokens_a_request_begins_with_what_others_have_shown() -> None:
    of_all = DrawAcceptance()
    assert of_all.chances(3) == pytest.approx([DRAWN_GUESS, DRAWN_GUESS**2, DRAWN_GUESS**3])
    for _ in range(200):
        of_all.record(False)
    own = DrawAcceptance(of_all)
    assert own.chance == pytest.approx(of_all.chance) and own.chance < 0.15
    for _ in range(200):
        own.record(True)
    assert own.chance > 0.85 and of_all.chance < 0.15


def test_what_was_refused_is_tried_again_some_time() -> None:
    acceptance = DrawAcceptance()
    for _ in range(200):
        acceptance.record(False)
    for _ in range(400):
        acceptance.fade()
    assert acceptance.chance > 0.5
