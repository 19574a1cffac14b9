"""The thought before an answer: whether the prompt leaves room for one or has begun it, and the limit of its tokens that a chat asks for.

Knows no engine, no form and no answer.
"""

from dataclasses import dataclass

from app.engine.request import ThoughtLimit
from app.errors import InvalidRequest
from app.forms.reasoning import Reasoning
from app.forms.splitter import Place, Splitter
from app.schemas import ChatRequest
from app.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Thought:
    """How the model marks a thought, and where the prompt ends, or else the message that is continued begins."""

    format: Reasoning
    place: Place
    continued: str = ""  # that message

    def splitter(self, has_calls: bool) -> Splitter:
        splitter = self.format.splitter(self.place, has_calls)
        if self.continued:
            splitter.go_on(self.continued)
        return splitter


def thought_of(tokenizer: Tokenizer, prompt: str, continued: str = "") -> Thought | None:
    """The thought that may begin the answer to this prompt, or that its end has begun, which is the message `continued`; None if the model
    does not think, or the prompt has closed its thought and the answer that follows has no marks.
    """
    format = tokenizer.chat.reasoning
    if format is None:
        return None
    if continued:
        continued = continued if prompt.endswith(continued) else continued.strip()  # as `ChatTemplate.render_continued` leaves it
    place = format.place(prompt.removesuffix(continued))
    if place == Place.AFTER_THOUGHT and continued.lstrip().startswith(format.open):
        place = Place.BEFORE_THOUGHT  # Qwen 3's template writes an empty thought before any last message
    thought = Thought(format, place, continued)
    return thought if thought.splitter(False).place != Place.AFTER_THOUGHT or format.marks_answers else None


def limit_of(body: ChatRequest, thought: Thought | None, tokenizer: Tokenizer) -> ThoughtLimit | None:
    """Without a thought there is nothing to limit. Raises `InvalidRequest` if the vocabulary cannot write the closing mark."""
    if thought is None or body.max_thought_tokens is None:
        return None
    has_calls = bool(body.tools) and body.tool_choice != "none"
    begun = thought.splitter(has_calls)
    if begun.place == Place.AFTER_THOUGHT:
        return None
    close, opened = thought.format.closing(has_calls), begun.place == Place.IN_THOUGHT
    closing = _tokens_of_mark(close, tokenizer)
    return ThoughtLimit(body.max_thought_tokens, thought.format.open, close, opened, closing, begun.continued)


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
