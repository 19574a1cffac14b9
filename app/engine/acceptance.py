"""How often drafted tokens are kept: those of a match by how many tokens before them were found earlier in the text, those that a draft
model drew by how often others of it were. Standard library only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

FIRST_GUESS = (0.1, 0.1, 0.15, 0.4, 0.7, 0.9)  # by the binary digits of the number of tokens that match: 2, 4, 8, 16 and more tokens
PRIOR_TRIALS = 6.0  # trials that what was known before counts for
KEPT = 0.97  # weight of the trials so far after each new one: a text changes
DRAWN_GUESS = 0.6  # of a token that a draft model drew
FADED = 0.99  # weight of the trials so far after each step without one: what was refused is tried again some time


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


@dataclass(slots=True)
class DrawAcceptance:
    """Of the tokens that a draft model draws for a request, or for all of them; `prior` is what was known before."""

    prior: "DrawAcceptance | None" = None
    _trials: float = 0.0
    _kept: float = 0.0

    @property
    def chance(self) -> float:
        """The probability that a token is kept if those before it are."""
        prior = DRAWN_GUESS if self.prior is None else self.prior.chance
        return (self._kept + PRIOR_TRIALS * prior) / (self._trials + PRIOR_TRIALS)

    def chances(self, tokens: int) -> list[float]:
        """For each of `tokens` tokens the probability that it and all before it are kept."""
        chance = self.chance
        return [chance**place for place in range(1, tokens + 1)]

    def record(self, is_kept: bool) -> None:
        self._trials = KEPT * self._trials + 1
        self._kept = KEPT * self._kept + is_kept

    def fade(self) -> None:
        """A step went by in which nothing was drawn."""
        self._trials *= FADED
        self._kept *= FADED


def _digits(match: int) -> int:
    return min(match.bit_length(), len(FIRST_GUESS) - 1)
