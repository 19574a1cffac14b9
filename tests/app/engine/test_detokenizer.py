"""The streamed pieces must join to the whole text, wherever the tokens cut it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.detokenizer import Detokenizer, StopChecker


def from_bytes(ids: list[int]) -> str:
    """A byte-level tokenizer whose tokens are single bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def with_leading_space(ids: list[int]) -> str:
    """A tokenizer like SentencePiece: the first word of a sequence loses its space."""
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


def test_preview_is_the_text_that_tokens_would_add_and_adds_none() -> None:
    detokenizer = Detokenizer(with_leading_space, (1, 2))
    assert detokenizer.preview([3, 4]) == " w3 w4"
    assert detokenizer.push(3) == " w3"
    assert detokenizer.preview([4]) == " w4"
    assert detokenizer.flush() == ""


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert detokenizer.push(0xF0) == ""
    assert detokenizer.flush() == "\ufffd"


def test_endless_invalid_bytes_do_not_wait_for_ever() -> None:
    detokenizer = Detokenizer(from_bytes)
    assert any(detokenizer.push(0xFF) for _ in range(40))


@given(st.lists(st.sampled_from("ab#"), max_size=40), st.lists(st.text("ab#", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_cuts_at_its_first_place_however_the_text_arrives(letters: list[str], stop_strings: list[str]) -> None:
    text = "".join(letters)
    checker, emitted, stopped = StopChecker(tuple(stop_strings)), "", False
    for letter in letters:
        piece, stopped = checker.push(letter)
        emitted += piece
        if stopped:
            break
    if not stopped:
        emitted += checker.flush()
    ends = [at + len(stop) for stop in stop_strings if (at := text.find(stop)) >= 0]
    assert stopped == bool(ends) == (checker.found in stop_strings)
    if not ends:
        assert emitted == text
    else:  # the stop string that was complete first ends the text
        first = min(ends)
        assert emitted == text[: min(first - len(stop) for stop in stop_strings if text[:first].endswith(stop))]
        assert text.startswith(emitted + str(checker.found))


@pytest.mark.parametrize("beginning", ["<", "<e", "<en"])
def test_a_possible_beginning_of_a_stop_string_is_held_back(beginning: str) -> None:
    checker = StopChecker(("<end>",))
    assert checker.push("a" + beginning) == ("a", False)
    assert checker.push("x") == (beginning + "x", False)


def test_the_first_token_is_decoded_with_the_end_of_the_prompt() -> None:
    """The decoder is like SentencePiece's: the first token loses its leading space."""
    words = {1: "once", 2: " upon", 3: " a", 4: ""}

    def detokenize(ids: list[int]) -> str:
        return "".join(words[id] for id in ids).lstrip(" ")

    assert Detokenizer(detokenize, (1, 2)).push(3) == " a"
    assert Detokenizer(detokenize, (4,)).push(3) == "a"
    assert Detokenizer(detokenize).push(3) == "a"


def test_tokens_without_text_do_not_accumulate() -> None:
    lengths = []

    def detokenize(ids: list[int]) -> str:
        lengths.append(len(ids))
        return "x" * sum(id == 1 for id in ids)

    detokenizer = Detokenizer(detokenize, (1, 1))
    assert [detokenizer.push(0) for _ in range(500)] == [""] * 500
    assert max(lengths) < 30
    assert detokenizer.push(1) == "x"
