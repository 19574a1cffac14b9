"""How often drafted tokens are kept, measured by how many tokens before them were found earlier in the text. Standard library only."""

from collections.abc import Sequence
from typing import Protocol

FIRST_GUESS = (0.1, 0.1, 0.15, 0.4, 0.7, 0.9)  # by the binary digits of the number of tokens that match: 2, 4, 8, 16 and more tokens
PRIOR_TRIALS = 6.0  # trials that what was known before counts for
KEPT = 0.97  # weight of the trials so far after each new one: a text changes


class Chances(Protocol):
    def chance(self, match: int) -> float:
        """The probability that a token drafted behind a match of `match` tokens is kept."""


class FirstGuess:
    def chance(self, match: int) -> float:
        return FIRST_GUESS[_digits(match)]


class Acceptance:
    """Of a request, or of all of them; `prior` is what was known before."""

    def __init__(self, prior: Chances) -> None:
        self._prior = prior
        self._trials = [0.0] * len(FIRST_GUESS)
        self._kept = [0.0] * len(FIRST_GUESS)

    def chance(self, match: int) -> float:
        digits = _digits(match)
        return (self._kept[digits] + PRIOR_TRIALS * self._prior.chance(match)) / (self._trials[digits] + PRIOR_TRIALS)

    def chances(self, match: int, tokens: int) -> list[float]:
        """For each of `tokens` drafted tokens the probability that it and all before it are kept. Each that is makes the match longer."""
        chances, product = [], 1.0
        for place in range(tokens):
            product *= self.chance(match + place)
            chances.append(product)
        return chances

    def record(self, match: int, drafted: Sequence[int], sampled: Sequence[int]) -> None:
        """`sampled` are the tokens that came where `drafted` were expected behind `match` tokens. Also those count that were not run."""
        for place, (expected, token) in enumerate(zip(drafted, sampled, strict=False)):
            digits = _digits(match + place)
            self._trials[digits] = KEPT * self._trials[digits] + 1
            self._kept[digits] = KEPT * self._kept[digits] + (expected == token)
            if expected != token:
                return


def _digits(match: int) -> int:
    return min(match.bit_length(), len(FIRST_GUESS) - 1)
