"""From engine events to OpenAI's bodies: whole answers and server-sent events, for chat and completions alike.

Knows no router.
"""

import json
import math
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from app.engine.request import Delta, Event, Failed, Finish, TokenLogprob, Waiting
from app.engine.text import CONTEXT
from app.errors import LitmusError
from app.schemas import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    PromptTokensDetails,
    TextLogprobs,
    Usage,
)
from app.tokenizer import Tokenizer
from serve.jobs import Prompt, Terms
from serve.logprobs import Row, Ruler, chat_form, text_form


@dataclass(frozen=True, slots=True)
class Growth:
    """What a delta adds to its choice."""

    text: str
    rows: list[Row]


class Part:
    """One sampled answer as it grows. Its text and rows begin with the prompt where that is echoed."""

    def __init__(self, prompt: Prompt, terms: Terms, tokenizer: Tokenizer) -> None:
        self.text = ""
        self.rows: list[Row] = []
        self.tokens = 0
        self.cached = 0
        self.finish: Finish | None = None
        self.begun = False
        self._prompt, self._terms = prompt, terms
        self._ruler = Ruler(tokenizer, len(prompt.text), opening=not tokenizer.decode(list(prompt.ids[-CONTEXT:])))
        self._logprobs = 0.0

    @property
    def mean_logprob(self) -> float:
        return self._logprobs / max(self.tokens, 1)

    def take(self, delta: Delta) -> Growth:
        text, rows = "", []
        if not self.begun:
            self.begun, self.cached = True, delta.cached
            if self._terms.echo:
                text, rows = self._prompt.text, self._echoed(delta.prompt_logprobs)
        if not self._terms.bare:
            text += delta.text
            rows += self._sampled(delta.logprobs)
            self.tokens += delta.tokens
        self.finish = "length" if delta.finish and self._terms.bare else delta.finish
        self.text += text
        self.rows += rows
        return Growth(text, rows)

    def _echoed(self, found: tuple[TokenLogprob, ...]) -> list[Row]:
        if self._terms.logprobs is None:
            return []
        ids, starts = self._prompt.ids, self._prompt.starts
        first = Row(ids[0], None, (), starts[0])
        return [first, *(Row(one.token, one.logprob, one.top, start) for one, start in zip(found, starts[1:], strict=True))]

    def _sampled(self, found: tuple[TokenLogprob, ...]) -> list[Row]:
        self._logprobs += sum(one.logprob for one in found)
        if self._terms.logprobs is None:
            return []
        return [Row(one.token, one.logprob, one.top, 0 if self._terms.chat else self._ruler.push(one.token)) for one in found]


@dataclass(slots=True)
class Answer:
    """A request's answer: `ids` are its jobs, the copies of the first prompt before those of the second."""

    id: str
    model: str
    terms: Terms
    prompts: list[Prompt]
    ids: list[str]
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))
    parts: list[Part] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = [Part(prompt, self.terms, self.tokenizer) for prompt in self.prompts for _ in range(self.terms.copies)]

    def usage(self) -> Usage:
        prompt, completion = sum(len(prompt.ids) for prompt in self.prompts), sum(part.tokens for part in self.parts)
        cached = sum(min(part.cached for part in copies) for copies in self._by_prompt())  # what one copy computes, the others find
        details = PromptTokensDetails(cached_tokens=cached)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, prompt_tokens_details=details)

    def take(self, event: Event) -> tuple[int, Growth]:
        """Add a delta to its choice; returns the choice's index. Raises the error of a failed job."""
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Delta)
        index = self.ids.index(event.id)
        return index, self.parts[index].take(event)

    def choices(self) -> list[Part]:
        """Of each prompt's copies the best ones, in the order of their seeds where all of them are wanted."""
        n = self.terms.n
        if n == self.terms.copies:
            return self.parts
        return [part for copies in self._by_prompt() for part in sorted(copies, key=lambda part: -part.mean_logprob)[:n]]

    def _by_prompt(self) -> list[list[Part]]:
        copies = self.terms.copies
        return [self.parts[first : first + copies] for first in range(0, len(self.parts), copies)]

    def body(self) -> ChatResponse | CompletionResponse:
        parts = list(enumerate(self.choices()))
        if self.terms.chat:
            choices = [
                ChatChoice(
                    index=index,
                    message=AnswerMessage(content=part.text),
                    logprobs=self._chat_logprobs(part.rows),
                    finish_reason=part.finish or "length",
                )
                for index, part in parts
            ]
            return ChatResponse(
                id=self.id, created=self.created, model=self.model, choices=choices, usage=self.usage(), service_tier=self.terms.tier
            )
        texts = [
            CompletionChoice(index=index, text=part.text, logprobs=self._text_logprobs(part.rows), finish_reason=part.finish or "length")
            for index, part in parts
        ]
        return CompletionResponse(
            id=self.id, created=self.created, model=self.model, choices=texts, usage=self.usage(), service_tier=self.terms.tier
        )

    def _chat_logprobs(self, rows: list[Row]) -> ChatLogprobs | None:
        return None if self.terms.logprobs is None else chat_form(rows, self.tokenizer)

    def _text_logprobs(self, rows: list[Row]) -> TextLogprobs | None:
        return None if self.terms.logprobs is None else text_form(rows, self.tokenizer)

    def chunk(self, choices: list[dict[str, object]], usage: Usage | None, with_usage: bool) -> str:
        body: dict[str, object] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.terms.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.terms.tier is not None:
            body["service_tier"] = self.terms.tier
        if with_usage:
            body["usage"] = usage.model_dump() if usage else None
        return sse(body)

    def opening(self, index: int) -> dict[str, object]:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def growth(self, index: int, growth: Growth) -> dict[str, object]:
        found = (self._chat_logprobs if self.terms.chat else self._text_logprobs)(growth.rows) if growth.rows else None
        said: dict[str, object] = {"delta": {"content": growth.text}} if self.terms.chat else {"text": growth.text}
        return {"index": index, **said, "logprobs": found.model_dump() if found else None, "finish_reason": None}

    def ending(self, index: int) -> dict[str, object]:
        said: dict[str, object] = {"delta": {}} if self.terms.chat else {"text": ""}
        return {"index": index, **said, "logprobs": None, "finish_reason": self.parts[index].finish}


def sse(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def queued(event: Waiting) -> str:
    """A comment, which clients that look for events only do not see."""
    eta = "" if event.wait_s is None else f" eta_s={math.ceil(event.wait_s)}"
    return f": queued position={event.position}{eta}\n\n"


async def stream(answer: Answer, events: AsyncIterable[Event], with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer. A failure in mid-stream is sent as an error event; `[DONE]` always ends the stream."""
    try:
        if answer.terms.chat:
            for index in range(len(answer.ids)):
                yield answer.chunk([answer.opening(index)], None, with_usage)
        async for event in events:
            if isinstance(event, Waiting):
                if not any(part.begun for part in answer.parts):
                    yield queued(event)
                continue
            index, growth = answer.take(event)
            if growth.text or growth.rows:
                yield answer.chunk([answer.growth(index, growth)], None, with_usage)
            if answer.parts[index].finish is not None:
                yield answer.chunk([answer.ending(index)], None, with_usage)
        if with_usage:
            yield answer.chunk([], answer.usage(), with_usage)
    except LitmusError as error:
        yield sse({**error.envelope()})
    yield "data: [DONE]\n\n"


async def whole(answer: Answer, events: AsyncIterable[Event]) -> None:
    """Take everything that comes until the answer is whole."""
    async for event in events:
        if not isinstance(event, Waiting):
            answer.take(event)
