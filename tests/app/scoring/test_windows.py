import pytest

from app.scoring.windows import passages, windows


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


STARTS = [[], [7, 21, 64, 90, 130, 180, 255, 300], list(range(1000))]


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("tokens", [2, 63, 64, 95, 96, 97, 200, 999])
def test_passages_score_every_token_once_and_read_nothing_before_them(tokens: int, starts: list[int]) -> None:
    parts = passages(tokens, 64, starts)
    assert [index for window in parts for index in range(window.scored_from, window.end)] == list(range(1, tokens))
    assert all(window.start == window.scored_from - 1 for window in parts)
    assert all(0.4 * 64 <= window.end - window.scored_from <= 1.8 * 64 for window in parts) or tokens < 64


def test_passages_begin_where_a_sentence_does_if_one_is_near() -> None:
    assert [window.scored_from for window in passages(192, 64, [60, 64 + 70])] == [1, 60, 134]
    assert [window.scored_from for window in passages(192, 64, [20, 100])] == [1, 64, 128]
    assert len(passages(95, 64, [])) == 1 and passages(1, 64, []) == ()
