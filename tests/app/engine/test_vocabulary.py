"""Bounds of numbers: what JSON leaves open."""

import numpy as np
import pytest

from app.engine.vocabulary import Vocabulary, within_bounds
from app.forms.trial import byte_tokenizer


@pytest.mark.parametrize(
    "number",
    ["", "-", "0", "9" * 19, "-" + "9" * 19, "1.", "1.5", "0." + "1" * 17, "0.00001" + "1" * 16, "1e", "1e307", "-1.5E-300", "5e+29"]
    + ["1.7.8", "2024-01-01"],
)
def test_a_number_within_the_bounds(number: str) -> None:
    assert within_bounds(number.encode())


@pytest.mark.parametrize(
    "number", ["9" * 20, "1." + "1" * 17, "1" * 18 + ".", "1" * 18 + "e", "1e0001", "1e308", "100e307", "0." + "0" * 7, "1e-999"]
)
def test_a_number_beyond_the_bounds(number: str) -> None:
    assert not within_bounds(number.encode())


def bounded(run: bytes, allowed: bytes) -> bytes:
    mask = np.zeros(257, dtype=np.bool_)
    mask[list(allowed)] = True
    Vocabulary(byte_tokenizer()).bound_number(run, mask)
    return bytes(np.flatnonzero(mask).tolist())


def test_a_number_that_may_end_is_ended_at_its_bounds() -> None:
    digits = b"0123456789"
    assert bounded(b"1" * 19, b",.]" + digits) == b",]"
    assert bounded(b"1" * 17, b",.]" + digits) == b",.0123456789]"
    assert bounded(b"1" * 18, b",.]" + digits) == b",0123456789]"
    assert bounded(b"1.5e30", b",]" + digits) == b",01234567]"
    assert bounded(b"0.000000", b"]" + digits) == b"]"


def test_what_may_not_end_goes_on() -> None:
    assert bounded(b"1" * 25, b"0123456789") == b"0123456789"  # the schema's own bounds ask for more digits


def test_digits_in_a_string_are_not_bounded() -> None:
    assert bounded(b"1" * 25, b'"0123456789') == b'"0123456789'
    assert bounded(b"1" * 25, b"0123456789abc,") == b",0123456789abc"


def test_the_number_at_the_end_of_an_answer() -> None:
    vocabulary, run = Vocabulary(byte_tokenizer()), b""
    for byte in b'{"a1": -12.5':
        run = vocabulary.number_after(run, byte)
    assert run == b"-12.5" and vocabulary.number_after(run, ord(",")) == b""
