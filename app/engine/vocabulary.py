"""The bytes of each token, and what follows from them for an answer in JSON: which tokens close most, and which go on with a number.

JSON sets no limit to a number's digits, and neither does llguidance. Here a whole number has at most 19 digits, any other at most 17
significant ones and an exponent of three. Knows no grammar and no model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

WHOLE_DIGITS = 19
SIGNIFICANT_DIGITS = 17  # tell any two float64 apart
LEADING_ZEROS = 6
EXPONENT_DIGITS = 3
MAX_EXPONENT = 308  # plus the digits before the point: never beyond float64
NUMBER_BYTES = b"0123456789+-.eE"
MAX_RUN = 64  # bytes kept of a number
CACHED_RUNS = 256

NUMBER = re.compile(rb"-?(?P<whole>\d+)(?P<fraction>\.\d*)?(?P<exponent>[eE][+-]?\d*)?")
STRING_LETTER = re.compile(rb"[a-dg-mo-su-zA-DF-Z]")  # begins no number, true, false or null: it can only be part of a string or a text
STRING_OR_LETTER = re.compile(rb'["a-df-zA-DF-Z]')  # never comes after a number
# Groups of tokens in the order in which they close most. Within a group, the longest tokens come first; of all others, the shortest.
CLOSING_VALUE = re.compile(
    rb'([\]}]["\]}]*)|([ :,]*""[\]}]*)|([ :,]*")|(, ?)|([ :,]*[0-9])|([ :,]*(?:null|true|false))|([ :,]*(?:\[\]|\{\})[\]}]*)|([ :,]*[ntf])'
    rb"|([0-9]+)|([ :,]*[\[{])"
)
CLOSING_STRING = re.compile(rb'("[\]}]*)|([^"\\\[\]{},:\x00-\x1f\x7f]+)')


@dataclass(frozen=True, slots=True)
class Order:
    """All tokens in the order in which they close most."""

    tokens: NDArray[np.int64]  # [vocab]
    shortest_first: NDArray[np.int64]  # [vocab] of tokens of one length in the same order
    place: NDArray[np.int64]  # [vocab] of each token in `tokens`


class Vocabulary:
    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._bytes = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
        self._length = np.array([len(text) for text in self._bytes])
        self._value_order, self._string_order = self._closing_order(CLOSING_VALUE), self._closing_order(CLOSING_STRING)
        self._string_letters = self._beginning_with(STRING_LETTER)
        self._first_byte = np.array([text[0] if text else 256 for text in self._bytes])
        self._not_after_number = self._beginning_with(STRING_OR_LETTER)
        self._no_number = np.array(
            [token for token, text in enumerate(self._bytes) if not text or text.strip(NUMBER_BYTES)], dtype=np.int64
        )
        self.digits = {text.decode(): token for token, text in reversed([*enumerate(self._bytes)]) if len(text) == 1 and text.isdigit()}
        self._number_starts: dict[bytes, list[int]] = {}  # the bytes of a number at the beginning of tokens, and which tokens
        for token, text in enumerate(self._bytes):
            if start := text[: len(text) - len(text.lstrip(NUMBER_BYTES))]:
                self._number_starts.setdefault(start, []).append(token)
        self._beyond = lru_cache(CACHED_RUNS)(self._tokens_beyond)

    def closing(self, allowed: NDArray[np.bool_]) -> list[int]:
        """The allowed token that closes most, in a list; an empty list if no token is allowed."""
        order = self._order(allowed).tokens
        at = int(allowed[order].argmax())
        return [int(order[at])] if allowed[order[at]] else []

    def is_in_string(self, allowed: NDArray[np.bool_]) -> bool:
        """Whether a string or a text goes on with the allowed tokens."""
        return bool(allowed[self._string_letters].any())

    def is_in_number(self, allowed: NDArray[np.bool_]) -> bool:
        """Whether only what goes on with a number is allowed, or begins one."""
        return not allowed[self._no_number].any()

    def continues_character(self, allowed: NDArray[np.bool_]) -> bool:
        """Whether only the next bytes of a character begun in UTF-8 are allowed."""
        first = self._first_byte[np.flatnonzero(allowed)]  # the mask is padded to whole words
        return bool(((first >= 0x80) & (first < 0xC0)).all())

    def end_a_string(self, tokens: Sequence[int]) -> bool:
        return any(b'"' in self._bytes[token] for token in tokens)

    def alternatives(self, allowed: NDArray[np.bool_]) -> list[int]:
        """For each first byte of the allowed tokens, the one that closes most and the shortest."""
        order = self._order(allowed)
        ways = (order.tokens, order.shortest_first)
        chosen = np.concatenate([self._first_of_each_byte(tokens[allowed[tokens]]) for tokens in ways])
        return [int(token) for token in sorted(set(chosen.tolist()), key=order.place.__getitem__)]

    def _first_of_each_byte(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each first byte, the first of the tokens that begin with it."""
        first = np.full(257, -1)
        first[self._first_byte[tokens[::-1]]] = tokens[::-1]  # of several with the same byte, numpy keeps the last
        return first[first >= 0]

    def number_after(self, run: bytes, token: int) -> bytes:
        """The bytes at the end of the answer that may be a number, when they were `run` before this token."""
        text = self._bytes[token]
        end = text[len(text.rstrip(NUMBER_BYTES)) :]
        return (run + text if len(end) == len(text) else end)[:MAX_RUN]

    def bound_number(self, run: bytes, allowed: NDArray[np.bool_]) -> None:
        """Forbid, in place, the tokens with which the number `run` at the end of the answer gets too long, unless no other is allowed.

        Where a letter or a quotation mark may follow, `run` is no number but part of a string or a text.
        """
        beyond = self._beyond(_shape(run)) if NUMBER.match(run) else None
        if beyond is None or not len(beyond) or allowed[self._not_after_number].any():
            return
        forbidden = beyond[allowed[beyond]]
        if len(forbidden) < np.count_nonzero(allowed):
            allowed[forbidden] = False

    def _tokens_beyond(self, run: bytes) -> NDArray[np.int64]:
        beyond = [tokens for start, tokens in self._number_starts.items() if not within_bounds(run + start)]
        return np.array([token for tokens in beyond for token in tokens], dtype=np.int64)

    def _order(self, allowed: NDArray[np.bool_]) -> Order:
        return self._string_order if self.is_in_string(allowed) else self._value_order

    def _closing_order(self, groups: re.Pattern[bytes]) -> Order:
        matches = [groups.fullmatch(text) for text in self._bytes]
        group = np.array([match.lastindex if match else groups.groups + 1 for match in matches])
        tokens = np.lexsort((np.where(group > groups.groups, self._length, -self._length), group))
        return Order(tokens, tokens[np.argsort(self._length[tokens], kind="stable")], np.argsort(tokens))

    def _beginning_with(self, pattern: re.Pattern[bytes]) -> NDArray[np.int64]:
        return np.array([token for token, text in enumerate(self._bytes) if pattern.match(text)], dtype=np.int64)


def within_bounds(number: bytes) -> bool:
    """Whether this beginning of a number is within the bounds; True for what is no beginning of a number."""
    match = NUMBER.fullmatch(number)
    if match is None:
        return True
    whole, fraction, exponent = (match[name] or b"" for name in ("whole", "fraction", "exponent"))
    if not fraction and not exponent:
        return len(whole) <= WHOLE_DIGITS
    digits = whole + fraction[1:]
    significant = digits.lstrip(b"0")
    power = exponent.lstrip(b"eE+-")
    reaches = len(whole) + int(power or 0)
    return (
        len(significant) <= SIGNIFICANT_DIGITS
        and len(digits) - len(significant) <= LEADING_ZEROS
        and len(power) <= EXPONENT_DIGITS
        and reaches <= MAX_EXPONENT
    )


def _shape(number: bytes) -> bytes:
    """A number within the same bounds, the same for many numbers: all digits from the first that is not 0 are ones."""
    mantissa, mark, exponent = number.lower().partition(b"e")
    start = len(mantissa) - len(mantissa.lstrip(b"-0."))
    return mantissa[:start] + re.sub(rb"\d", b"1", mantissa[start:]) + mark + exponent
