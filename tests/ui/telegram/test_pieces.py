import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.telegram.pieces import MAX_UNITS, clean, split, units


@pytest.mark.parametrize(("text", "count"), [("", 0), ("abc", 3), ("ä", 1), ("🦊", 2), ("a🦊", 3)])
def test_units_are_those_of_utf_16(text: str, count: int):
    assert units(text) == count == len(text.encode("utf-16-le")) // 2


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n", []),
        ("short", ["short"]),
        ("one two three", ["one two", "three"]),
        ("one\ntwo three", ["one\ntwo", "three"]),
        ("first\nsecond", ["first", "second"]),
        ("abcdefghijklm", ["abcdefghij", "klm"]),
        ("🦊🦊🦊🦊🦊🦊", ["🦊🦊🦊🦊🦊", "🦊"]),
        ("a🦊🦊🦊🦊🦊", ["a🦊🦊🦊🦊", "🦊"]),
        (" " * 25 + "end", ["     end"]),
    ],
)
def test_split_at_line_breaks_then_blanks_then_anywhere(text: str, pieces: list[str]):
    assert split(text, 10) == pieces


@given(st.text(st.sampled_from("a🦊 \n"), max_size=60), st.integers(0, 60))
def test_pieces_fit_lose_nothing_but_blanks_and_do_not_change_when_the_text_grows(text: str, length: int):
    pieces = split(text, 10)
    assert all(piece.strip() and units(piece) <= 10 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    earlier = split(text[:length], 10)
    assert pieces[: max(len(earlier) - 1, 0)] == earlier[:-1]


def test_the_limit_is_telegrams():
    assert [units(piece) for piece in split("a" * 5000)] == [MAX_UNITS, 5000 - 4096]


def test_clean_joins_surrogates_and_replaces_single_ones():
    assert clean("a\ud83e\udd8a\ud800b\0") == "a🦊\ufffdb"
