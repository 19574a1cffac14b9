"""Prompt lookup against a slow search, and by table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.lookup import MAX_MATCH, MIN_MATCH, Match, OwnText, longest_match


def match_of(tokens: list[int], ahead: list[int] = [], limit: int = 9) -> Match | None:  # noqa: B006  (not changed)
    text = OwnText()
    text.update(tokens[: len(tokens) // 2])
    text.update(tokens)
    return text.match(ahead, limit)


@pytest.mark.parametrize(
    ("tokens", "ahead", "expected"),
    [
        ([1, 2, 3, 4, 9, 1, 2], [], Match(2, (3, 4, 9, 1, 2, 3, 4, 9, 1))),  # it goes on as if the text repeated itself
        ([1, 2, 3, 4, 9, 1], [2, 3], Match(3, (4, 9, 1, 2, 3, 4, 9, 1, 2))),
        ([7, 1, 2, 5, 5, 8, 1, 2, 6, 6, 7, 1, 2], [], Match(3, (5, 5, 8, 1, 2, 6, 6, 7, 1))),  # the longest match, not the latest
        ([1, 2, 5, 0, 1, 2, 6, 0, 1, 2], [], Match(3, (6, 0, 1, 2, 6, 0, 1, 2, 6))),  # the latest of equal ones
        ([4, 4, 4, 4], [], Match(3, (4,) * 9)),
        ([1, 2, 3, 4], [], None),
        ([1, 5, 2, 5], [], None),  # one token alone does not count
        ([5], [], None),
        ([], [5, 6], None),
        ([200_000, 0xD800, 55, 200_000, 0xD800], [], Match(2, (55, 200_000, 0xD800) * 3)),  # any id, also of half a surrogate pair
    ],
)
def test_what_followed_the_longest_match_is_expected(tokens: list[int], ahead: list[int], expected: Match | None) -> None:
    assert match_of(tokens, ahead) == expected


def test_no_more_tokens_than_asked_for() -> None:
    assert match_of([1, 2, 3, 4, 1, 2], limit=1) == Match(2, (3,))
    assert match_of([1, 2, 3, 4, 1, 2], limit=0) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], Match(3, (5, 6, 7, 8))),  # the answer has not begun
        ([5, 6], Match(5, (7, 8))),
        ([5, 9, 6, 7], Match(2, (8,))),  # it has left the prediction and come back
        ([5, 9], None),
        ([5, 6, 7, 8], None),  # it has come to an end
        ([0, 0, 0, 6, 7], Match(2, (8,))),
        ([2, 3, 1, 2, 3], Match(3, (5, 6, 7, 8))),  # as long a match as in the text, which goes on with 5, too
    ],
)
def test_a_prediction_is_looked_up_from_its_beginning_on(answer: list[int], expected: Match | None) -> None:
    text = OwnText((1, 2, 3), (5, 6, 7, 8))
    text.update([1, 2, 3, *answer])
    assert text.match([], 9) == expected


def test_the_longer_match_counts() -> None:
    text = OwnText((1, 2, 3, 4, 9), (7, 3, 4, 5))
    text.update([1, 2, 3, 4, 9, 0, 2, 3, 4])
    assert text.match([], 2) == Match(3, (9, 0))


def slowly(text: str) -> tuple[int, int]:
    for length in range(min(MAX_MATCH, len(text) - 1), MIN_MATCH - 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return end, length
    return 0, 0


@given(st.text("ab", max_size=90) | st.text("abcde", max_size=90))
def test_the_match_is_the_one_of_a_slow_search(text: str) -> None:
    assert longest_match(text, text) == slowly(text)
