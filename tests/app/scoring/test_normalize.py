"""What normalization changes, and that every character keeps its index in the original text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.scoring.normalize import HOMOGLYPHS, normalize


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
def test_changes_and_their_counts(sent: str, content: str | None, changes: dict[str, int]) -> None:
    normalized = normalize(sent)
    assert normalized.content == (sent if content is None else content)
    assert normalized.changes == changes


@pytest.mark.parametrize(
    ("sent", "content", "count"),
    [("a  b", "a b", 1), (" a\n\nb ", "a b", 4), ("a b", "a b", 0), ("\t", "", 1), ("a\tb", "a b", 1), ("a\u200b \u200bb", "a b", 0)],
)
def test_collapsing_leaves_single_blanks(sent: str, content: str, count: int) -> None:
    normalized = normalize(sent, collapse=True)
    assert normalized.content == content == " ".join(normalized.content.split())
    assert normalized.changes.get("white_space", 0) == count


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\u200b\x00 \n\tаеоabc\uff28\ufb01"), max_size=60), st.booleans())
def test_every_character_keeps_its_index(sent: str, collapse: bool) -> None:
    normalized = normalize(sent, collapse)
    assert len(normalized.origins) == len(normalized.content)
    assert list(normalized.origins) == sorted(normalized.origins)
    for letter, index in zip(normalized.content, normalized.origins, strict=True):
        assert letter == sent[index] or (letter == " " and sent[index].isspace()) or not sent[index].isascii()
    whole = normalized.original_span(0, len(normalized.content))
    assert 0 <= whole[0] <= whole[1] <= len(sent)
    assert normalize(normalized.content, collapse).content == normalized.content or any(letter in HOMOGLYPHS for letter in sent)


def test_an_original_span_covers_characters_removed_inside_it() -> None:
    normalized = normalize("one t\u200bwo  three", collapse=True)
    start = normalized.content.index("two")
    first, last = normalized.original_span(start, start + 3)
    assert "one t\u200bwo  three"[first:last] == "t\u200bwo"
    assert normalized.original_span(0, 0) == (0, 0)
    assert normalized.original_span(len(normalized.content), len(normalized.content)) == (
        15,
        15,
    )
