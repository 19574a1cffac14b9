"""Log-probabilities in OpenAI's two formats: a list of tokens for a chat, parallel lists for a completion.

Knows the tokenizer, and of the engine only its values.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.events import TokenLogprob
from app.schemas import ChatLogprobs, ContentLogprob, TextLogprobs, TopLogprob
from app.schemas.answers import PromptLogprob, PromptLogprobs
from app.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # what OpenAI reports for a probability of zero; JSON has no infinity


@dataclass(frozen=True, slots=True)
class LogprobEntry:
    """One token of a choice: its log-probability, the top tokens at its position, and the character of the text at which it starts."""

    token: int
    logprob: float | None  # None for the first token of a prompt, which nothing predicts
    top: tuple[tuple[int, float], ...]  # (token, log-probability), most likely first
    start: int


class OffsetTracker:
    """Finds the character of a text at which each of its tokens starts.

    A token that continues a multi-byte character starts where that character starts.
    """

    def __init__(self, tokenizer: Tokenizer, start: int = 0, at_text_start: bool = True) -> None:
        """`start` is the offset of the first token; `at_text_start` says that no text stands before it."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_text_start = at_text_start
        self._offset = start

    def push(self, token: int) -> int:
        """Add the next token and return its offset, in characters."""
        start, piece = self._offset, self._tokenizer.piece(token)
        if not piece.special:
            self._offset += len(self._decoder.decode(piece.data_at_start if self._at_text_start else piece.data))
            self._at_text_start = False
        return start


def chat_logprobs(entries: Sequence[LogprobEntry], of_thought: Sequence[LogprobEntry], tokenizer: Tokenizer) -> ChatLogprobs:
    thought = [_content_logprob(entry, tokenizer) for entry in of_thought]
    return ChatLogprobs(content=[_content_logprob(entry, tokenizer) for entry in entries], reasoning_content=thought or None)


def completion_logprobs(entries: Sequence[LogprobEntry], tokenizer: Tokenizer) -> TextLogprobs:
    return TextLogprobs(
        tokens=[tokenizer.piece(entry.token).text for entry in entries],
        token_logprobs=[None if entry.logprob is None else max(entry.logprob, MIN_LOGPROB) for entry in entries],
        top_logprobs=[
            None if entry.logprob is None else _logprob_by_text([*entry.top, (entry.token, entry.logprob)], tokenizer) for entry in entries
        ],
        text_offset=[entry.start for entry in entries],
    )


def prompt_logprobs(ids: Sequence[int], logprobs: Sequence[TokenLogprob], top: int, tokenizer: Tokenizer) -> PromptLogprobs:
    """vLLM's form: for each token of the prompt itself and the `top` likeliest ones, by their ids. `logprobs` are of all but the first."""
    return [None, *(_by_id(item, top, tokenizer) for item in logprobs)] if ids else []


def _by_id(item: TokenLogprob, top: int, tokenizer: Tokenizer) -> dict[str, PromptLogprob]:
    ranks = {token: (rank, logprob) for rank, (token, logprob) in enumerate(item.top[:top], 1)}
    entries = {item.token: (ranks.get(item.token, (None, 0.0))[0], item.logprob)} | ranks
    return {
        str(token): PromptLogprob(logprob=max(logprob, MIN_LOGPROB), rank=rank, decoded_token=tokenizer.piece(token).text)
        for token, (rank, logprob) in entries.items()
    }


def _content_logprob(entry: LogprobEntry, tokenizer: Tokenizer) -> ContentLogprob:
    assert entry.logprob is not None  # only a prompt's first token has none, and chat echoes no prompt
    piece = tokenizer.piece(entry.token)
    top = [_top_logprob(token, logprob, tokenizer) for token, logprob in entry.top]
    return ContentLogprob(token=piece.text, logprob=max(entry.logprob, MIN_LOGPROB), bytes=list(piece.data), top_logprobs=top)


def _top_logprob(token: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    piece = tokenizer.piece(token)
    return TopLogprob(token=piece.text, logprob=max(logprob, MIN_LOGPROB), bytes=list(piece.data))


def _logprob_by_text(top: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> dict[str, float]:
    """OpenAI keys these by text: of two tokens with the same text, the more likely one is kept."""
    by_text: dict[str, float] = {}
    for token, logprob in top:
        by_text.setdefault(tokenizer.piece(token).text, max(logprob, MIN_LOGPROB))
    return by_text
