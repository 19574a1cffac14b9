"""Text that streams must join to the text that was meant, whatever the tokens cut through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.detokenizer import Detokenizer, Stopper


def from_bytes(ids: list[int]) -> str:
    """A byte-level tokenizer whose tokens are single bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def with_leading_space(ids: list[int]) -> str:
    """A tokenizer in the manner of SentencePiece: the first word of a sequence loses its space."""
    return " ".join(f"w{token}" for token in ids)


@given(st.text(max_size=60))
def test_pieces_join_to_the_text_and_hold_no_half_characters(text: str) -> None:
    detokenizer = Detokenizer(from_bytes)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


def test_leading_spaces_survive_the_short_tail() -> None:
    detokenizer = Detokenizer(with_leading_space)
    assert "".join(detokenizer.push(token) for token in range(20)) == with_leading_space(list(range(20)))


def test_what_tokens_would_add_is_read_and_nothing_is_taken() -> None:
    detokenizer = Detokenizer(with_leading_space, (1, 2))
    assert detokenizer.read([3, 4]) == " w3 w4"
    assert detokenizer.push(3) == " w3"
    assert detokenizer.read([4]) == " w4"
    assert detokenizer.flush() == ""


def test_a_character_that_never_ends_is_shown_broken_at_the_end() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert detokenizer.push(0xF0) == ""
    assert detokenizer.flush() == "\ufffd"


def test_endless_invalid_bytes_do_not_wait_for_ever() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert any(detokenizer.push(0xFF) for _ in range(40))


@given(st.lists(st.sampled_from("ab#"), max_size=40), st.lists(st.text("ab#", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_cuts_at_its_first_place_however_the_text_arrives(letters: list[str], words: list[str]) -> None:
    text = "".join(letters)
    stopper, shown, stopped = Stopper(tuple(words)), "", False
    for letter in letters:
        piece, stopped = stopper.push(letter)
        shown += piece
        if stopped:
            break
    if not stopped:
        shown += stopper.flush()
    ends = [at + len(word) for word in words if (at := text.find(word)) >= 0]
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:  # what stopped it is the occurrence that was complete first
        first = min(ends)
        assert shown == text[: min(first - len(word) for word in words if text[:first].endswith(word))]


@pytest.mark.parametrize("held", ["<", "<e", "<en"])
def test_what_could_begin_a_stop_string_is_held_back(held: str) -> None:
    stopper = Stopper(("<end>",))
    assert stopper.push("a" + held) == ("a", False)
    assert stopper.push("x") == (held + "x", False)


def test_the_first_token_is_read_behind_the_prompt() -> None:
    """As with SentencePiece, whose first token loses its leading blank."""
    words = {1: "once", 2: " upon", 3: " a", 4: ""}

    def decode(ids: list[int]) -> str:
        return "".join(words[id] for id in ids).lstrip(" ")

    assert Detokenizer(decode, (1, 2)).push(3) == " a"
    assert Detokenizer(decode, (4,)).push(3) == "a"
    assert Detokenizer(decode).push(3) == "a"


def test_tokens_that_show_nothing_are_not_kept() -> None:
    seen = []

    def decode(ids: list[int]) -> str:
        seen.append(len(ids))
        return "x" * sum(id == 1 for id in ids)

    detokenizer = Detokenizer(decode, (1, 1))
    assert [detokenizer.push(0) for _ in range(500)] == [""] * 500
    assert max(seen) < 30
    assert detokenizer.push(1) == "x"
