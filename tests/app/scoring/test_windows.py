import pytest

from app.scoring.windows import windows


@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_predicts_a_first_token(tokens: int) -> None:
    assert windows(tokens, 16) == ()


@pytest.mark.parametrize("context", [2, 3, 16, 17])
@pytest.mark.parametrize("tokens", [2, 15, 16, 17, 18, 31, 100])
def test_every_token_is_scored_once_with_context_before_it(tokens: int, context: int) -> None:
    parts = windows(tokens, context)
    scored = [index for window in parts for index in range(window.scored_from, window.end)]
    assert scored == list(range(1, tokens))
    assert all(window.end - window.start <= context for window in parts)
    assert all(window.scored_from > window.start for window in parts)
    assert all(window.scored_from - window.start >= context // 2 for window in parts[1:])


def test_a_text_that_fits_has_one_window() -> None:
    assert len(windows(16, 16)) == 1
