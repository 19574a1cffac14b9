"""Log-probabilities in OpenAI's two forms: of chat, a list of tokens, and of completions, columns.

Knows the tokenizer and no engine but its values.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from app.schemas import ChatLogprobs, ContentLogprob, TextLogprobs, TopLogprob
from app.tokenizer import Tokenizer

LEAST = -9999.0  # what OpenAI writes for a token that is next to impossible; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Row:
    """A token of a choice, the character of its text that it begins at, and the likeliest tokens in its place."""

    token: int
    logprob: float | None  # None: nothing predicts it
    top: tuple[tuple[int, float], ...]
    start: int


class Ruler:
    """Where in a text its tokens begin. A token that goes on with a character begins where the character does."""

    def __init__(self, tokenizer: Tokenizer, start: int = 0, opening: bool = True) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._opening = opening  # nothing stands before the first token
        self._at = start

    def push(self, token: int) -> int:
        start, piece = self._at, self._tokenizer.piece(token)
        if not piece.control:
            self._at += len(self._decoder.decode(piece.opening if self._opening else piece.data))
            self._opening = False
        return start


def chat_form(rows: Sequence[Row], tokenizer: Tokenizer) -> ChatLogprobs:
    return ChatLogprobs(content=[_content(row, tokenizer) for row in rows])


def text_form(rows: Sequence[Row], tokenizer: Tokenizer) -> TextLogprobs:
    return TextLogprobs(
        tokens=[tokenizer.piece(row.token).text for row in rows],
        token_logprobs=[None if row.logprob is None else max(row.logprob, LEAST) for row in rows],
        top_logprobs=[None if row.logprob is None else _likeliest([*row.top, (row.token, row.logprob)], tokenizer) for row in rows],
        text_offset=[row.start for row in rows],
    )


def _content(row: Row, tokenizer: Tokenizer) -> ContentLogprob:
    assert row.logprob is not None  # only a prompt's first token has none, and chat echoes no prompt
    piece = tokenizer.piece(row.token)
    top = [_top(token, logprob, tokenizer) for token, logprob in row.top]
    return ContentLogprob(token=piece.text, logprob=max(row.logprob, LEAST), bytes=list(piece.data), top_logprobs=top)


def _top(token: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    piece = tokenizer.piece(token)
    return TopLogprob(token=piece.text, logprob=max(logprob, LEAST), bytes=list(piece.data))


def _likeliest(found: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> dict[str, float]:
    """By text, as OpenAI has it; of two tokens that are spelled alike the likelier stays."""
    made: dict[str, float] = {}
    for token, logprob in found:
        made.setdefault(tokenizer.piece(token).text, max(logprob, LEAST))
    return made
