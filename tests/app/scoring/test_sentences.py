import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.scoring.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("One only", ["One only"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("“Stop!” he cried. She ran.", ["“Stop!” he cried.", "She ran."]),
        ("Mr. Fox met Dr. Crow at 3.50 p.m. They talked.", ["Mr. Fox met Dr. Crow at 3.50 p.m.", "They talked."]),
        ("J. R. Smith wrote it. Then he left.", ["J. R. Smith wrote it.", "Then he left."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("A title\n\nA text begins.  It ends.\n", ["A title", "A text begins.", "It ends."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


@given(st.text(alphabet='aB.!? \n"”’)x', max_size=80))
def test_spans_are_in_order_and_leave_out_only_white_space(text: str) -> None:
    spans = sentences(text)
    assert all(start < end for start, end in spans)
    assert all(span[1] <= following[0] for span, following in zip(spans, spans[1:], strict=False))
    covered = set().union(*(range(start, end) for start, end in spans)) if spans else set()
    assert all(letter.isspace() for index, letter in enumerate(text) if index not in covered)


@pytest.mark.parametrize("text", ["." * 300_000, "a. " * 100_000, '."' * 150_000, " " * 300_000, "Mr. " * 80_000])
def test_a_hostile_text_takes_linear_time(text: str) -> None:
    """Quadratic work would take hours; a test that hangs fails."""
    assert len(sentences(text)) <= 100_000
