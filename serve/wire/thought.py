"""The thought before an answer: whether the prompt leaves room for one, and the limit of its tokens that a chat asks for.

Knows no engine, no form and no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.request import ThoughtLimit
from app.errors import InvalidRequest
from app.forms.reasoning import ReasoningFormat
from app.schemas import ChatRequest
from app.tokenizer import Tokenizer

PROMPT_END_TOKENS = 16  # in which a template opens or closes a thought


@dataclass(frozen=True, slots=True)
class Thought:
    """How the model marks a thought, and whether the prompt has opened it, or has closed it."""

    format: ReasoningFormat
    opened: bool
    closed: bool = False


def thought_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> Thought | None:
    """The thought that may begin the answer to this prompt; None if the model does not think, or the prompt has closed its thought and the
    answer that follows has no marks.
    """
    format = tokenizer.chat.reasoning
    if format is None:
        return None
    end = tokenizer.decode(list(prompt[-PROMPT_END_TOKENS:])).rstrip()
    if format.is_closed_by(end):
        return Thought(format, opened=False, closed=True) if format.answer_open else None
    return Thought(format, format.is_opened_by(end))


def limit_of(body: ChatRequest, thought: Thought | None, tokenizer: Tokenizer) -> ThoughtLimit | None:
    """Without a thought there is nothing to limit. Raises `InvalidRequest` if the vocabulary cannot write the closing mark."""
    if thought is None or thought.closed or body.max_thought_tokens is None:
        return None
    open, close = thought.format.open, thought.format.close
    return ThoughtLimit(body.max_thought_tokens, open, close, thought.opened, _tokens_of_mark(close, tokenizer))


def _tokens_of_mark(mark: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """For each number of letters that are written, the token that goes on with the mark."""
    if mark in tokenizer.added_tokens.ids:
        return (tokenizer.added_tokens.ids[mark],) * len(mark)
    return tuple(_first_token(mark[start:], tokenizer) for start in range(len(mark)))


def _first_token(text: str, tokenizer: Tokenizer) -> int:
    """The one with which the tokenizer begins the text, unless that would write a space before it; else the longest that fits."""
    usual = tokenizer.encode(text, "text", add_special_tokens=False)[0]
    longest = (tokenizer.base.backend_tokenizer.token_to_id(text[:end]) for end in range(len(text), 0, -1))
    for token in (usual, *longest):
        data = b"" if token is None else tokenizer.piece(token).data
        if data and text.encode().startswith(data):
            return int(token)
    raise InvalidRequest(
        "the thought cannot be limited: the model's vocabulary cannot write the mark that closes it", param="thinking_token_budget"
    )
