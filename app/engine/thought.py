"""The limit of a thought's tokens: counts them in one answer, and writes the mark that closes the thought where they are used up.

Knows no tokenizer and no model: the request says how its marks are written.
"""

import numpy as np
from numpy.typing import NDArray

from app.engine.detokenizer import REPLACEMENT, Detokenizer
from app.engine.request import ThoughtLimit
from app.forms.parser import overlap

CHARACTER_TOKENS = 4  # a character has at most so many tokens, one a byte of UTF-8


class LimitedThought:
    """Of one answer. The thought is found as `app.forms.reasoning.ThoughtSplitter` finds it; the tokens of its marks are not counted."""

    def __init__(self, limit: ThoughtLimit) -> None:
        self._limit = limit
        self._has_begun, self._has_ended = limit.opened, False
        self._tokens = 0
        self._text = limit.begun  # the end of what was written, in which a mark may begin

    def push(self, text: str) -> None:
        """Add what a token of the answer has added to the text."""
        if self._has_ended:
            return
        self._tokens += self._has_begun
        self._text += text
        if not self._has_begun:
            self._look_for_beginning(self._text.lstrip())
        if self._has_begun:
            self._has_ended = self._limit.close in self._text
            self._text = self._text[-len(self._limit.close) :]

    def steer(self, token: int, allowed: NDArray[np.bool_] | None, detokenizer: Detokenizer) -> int:
        """The sampled token, or the next one of the closing mark, unless a grammar does not allow it here."""
        if not self._has_begun or self._has_ended:
            return token
        written = overlap(self._text, self._limit.close)
        closing = self._limit.closing_tokens[written]
        must_close = self._must_close(token, written > 0, detokenizer)
        return closing if must_close and (allowed is None or allowed[closing]) else token

    def _look_for_beginning(self, text: str) -> None:
        if text.startswith(self._limit.open):
            self._has_begun, self._text = True, text.removeprefix(self._limit.open)
        else:
            self._has_ended = not self._limit.open.startswith(text)  # an answer without a thought

    def _must_close(self, token: int, is_begun: bool, detokenizer: Detokenizer) -> bool:
        """Whether no token is left, or few while the closing mark is begun, or too few for all bytes of a character that the sampled
        token begins. Decided from the text alone, so that another worker can go on with the answer.
        """
        left = self._limit.tokens - self._tokens
        if left >= CHARACTER_TOKENS:
            return False
        return left <= 0 or (not _is_cut(detokenizer.preview([])) and (is_begun or _is_cut(detokenizer.preview([token]))))


def _is_cut(text: str) -> bool:
    return text.endswith(REPLACEMENT)
