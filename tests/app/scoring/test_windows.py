import pytest

from app.scoring.windows import windows


@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_predicts_a_first_token(tokens: int) -> None:
    assert windows(tokens, 16) == ()


@pytest.mark.parametrize("context", [2, 3, 16, 17])
@pytest.mark.parametrize("tokens", [2, 15, 16, 17, 18, 31, 100])
def test_every_token_is_scored_once_with_context_before_it(tokens: int, context: int) -> None:
    made = windows(tokens, context)
    kept = [place for window in made for place in range(window.keep, window.end)]
    assert kept == list(range(1, tokens))
    assert all(window.end - window.start <= context for window in made)
    assert all(window.keep > window.start for window in made)
    assert all(window.keep - window.start >= context // 2 for window in made[1:])


def test_a_text_that_fits_has_one_window() -> None:
    assert len(windows(16, 16)) == 1
