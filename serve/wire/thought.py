"""The thought before an answer: whether the prompt leaves room for one, and the limit of its tokens that a chat asks for.

Knows no engine, no form and no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.request import ThoughtLimit
from app.errors import InvalidRequest
from app.forms.reasoning import Reasoning
from app.forms.splitter import Place
from app.schemas import ChatRequest
from app.tokenizer import Tokenizer

PROMPT_END_TOKENS = 16  # in which a template opens or closes a thought


@dataclass(frozen=True, slots=True)
class Thought:
    """How the model marks a thought, and where the prompt ends."""

    format: Reasoning
    place: Place


def thought_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> Thought | None:
    """The thought that may begin the answer to this prompt; None if the model does not think, or the prompt has closed its thought and the
    answer that follows has no marks.
    """
    format = tokenizer.chat.reasoning
    if format is None:
        return None
    place = format.place(tokenizer.decode(list(prompt[-PROMPT_END_TOKENS:])))
    return Thought(format, place) if place != Place.AFTER_THOUGHT or format.marks_answers else None


def limit_of(body: ChatRequest, thought: Thought | None, tokenizer: Tokenizer) -> ThoughtLimit | None:
    """Without a thought there is nothing to limit. Raises `InvalidRequest` if the vocabulary cannot write the closing mark."""
    if thought is None or thought.place == Place.AFTER_THOUGHT or body.max_thought_tokens is None:
        return None
    close = thought.format.closing(has_calls=bool(body.tools) and body.tool_choice != "none")
    opened = thought.place == Place.IN_THOUGHT
    return ThoughtLimit(body.max_thought_tokens, thought.format.open, close, opened, _tokens_of_mark(close, tokenizer))


def _tokens_of_mark(mark: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """For each number of letters that are written, the token that goes on with the mark."""
    ids, tokens = tokenizer.added_tokens.ids, list[int]()
    for part in tokenizer.added_tokens.split(mark):
        tokens += [ids[part] if part in ids else _first_token(part[start:], tokenizer) for start in range(len(part))]
    return tuple(tokens)


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
