"""What is taken out of a text before it is scored, and that every character keeps its place in the text as sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.scoring.normalize import LOOKS, normal


@pytest.mark.parametrize(
    ("sent", "content", "changes"),
    [
        ("plain text", "plain text", {}),
        ("", "", {}),
        ("he\u200bl\u200dlo\ufeff", "hello", {"zero_width": 3}),
        ("soft\u00adhyphen", "softhyphen", {"zero_width": 1}),
        ("a\x00b\x07c\x1b", "abc", {"control": 3}),
        ("tab\tand\nline", "tab\tand\nline", {}),
        ("the \u0441\u0430t s\u0430t on the mat", "the cat sat on the mat", {"homoglyph": 3}),
        ("\uff28\uff45llo", "Hello", {"compatibility": 2}),
        ("\U0001d407ello", "Hello", {"compatibility": 1}),
        ("“Stop,” he said, ‘now’", "\"Stop,\" he said, 'now'", {"quotes": 4}),
        ("\u0430ll \u0430re c\u0430ts \u0430", "all are cats a", {"homoglyph": 4}),
        ("the word сор and the word και are quoted", "the word сор and the word και are quoted", {}),
        ("a\u202cb\u2068c\ufe0fd\U000e0020e\u3164f", "abcdef", {"zero_width": 5}),
        ("naïve café Łódź", "naïve café Łódź", {}),
        ("Это русский текст про кота", "Это русский текст про кота", {}),
        ("Tolstoy wrote Война и мир in many years of his long and busy life", None, {}),
        ("the α level of this test", "the α level of this test", {}),
        ("emoji 😀 and 日本 stay here as they are", "emoji 😀 and 日本 stay here as they are", {}),
        ("עברית مرحبا", "עברית مرحبا", {}),
    ],
)
def test_what_is_changed(sent: str, content: str | None, changes: dict[str, int]) -> None:
    made = normal(sent)
    assert made.content == (sent if content is None else content)
    assert made.changes == changes


@pytest.mark.parametrize(
    ("sent", "content", "count"),
    [("a  b", "a b", 1), (" a\n\nb ", "a b", 4), ("a b", "a b", 0), ("\t", "", 1), ("a\tb", "a b", 1), ("a\u200b \u200bb", "a b", 0)],
)
def test_collapsing_leaves_single_blanks(sent: str, content: str, count: int) -> None:
    made = normal(sent, collapse=True)
    assert made.content == content == " ".join(made.content.split())
    assert made.changes.get("white_space", 0) == count


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\u200b\x00 \n\tаеоabc\uff28\ufb01"), max_size=60), st.booleans())
def test_every_character_keeps_its_place(sent: str, collapse: bool) -> None:
    made = normal(sent, collapse)
    assert len(made.places) == len(made.content)
    assert list(made.places) == sorted(made.places)
    for letter, place in zip(made.content, made.places, strict=True):
        assert letter == sent[place] or (letter == " " and sent[place].isspace()) or not sent[place].isascii()
    whole = made.span(0, len(made.content))
    assert 0 <= whole[0] <= whole[1] <= len(sent)
    assert normal(made.content, collapse).content == made.content or any(letter in LOOKS for letter in sent)


def test_a_span_covers_what_was_left_out_inside_it() -> None:
    made = normal("one t\u200bwo  three", collapse=True)
    start = made.content.index("two")
    left, right = made.span(start, start + 3)
    assert "one t\u200bwo  three"[left:right] == "t\u200bwo"
    assert made.span(0, 0) == (0, 0) and made.span(len(made.content), len(made.content)) == (15, 15)
