"""From engine events to OpenAI's bodies: whole answers and server-sent events, for chat and completions alike.

Knows no router.
"""

import json
import math
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from app.engine.request import Delta, Event, Facts, Failed, Waiting
from app.errors import LitmusError
from app.forms.parser import CallPart, CallStart
from app.schemas import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    FunctionCall,
    PromptTokensDetails,
    TextLogprobs,
    ToolCall,
    Usage,
)
from app.tokenizer import Tokenizer
from serve.wire.choice import Call, Growth, Part
from serve.wire.logprobs import Row, chat_form, text_form
from serve.wire.requests import Prompt, Terms

BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # ends of lines to some clients


@dataclass(slots=True)
class Answer:
    """A request's answer: `ids` are its jobs, the copies of the first prompt before those of the second."""

    id: str
    facts: Facts
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
                    message=_message(part),
                    logprobs=self._chat_logprobs(part.rows),
                    finish_reason=part.finish or "length",
                )
                for index, part in parts
            ]
            return ChatResponse(
                id=self.id,
                created=self.created,
                model=self.facts.name,
                choices=choices,
                usage=self.usage(),
                service_tier=self.terms.tier,
                system_fingerprint=self.facts.fingerprint,
                metadata=self.terms.metadata,
            )
        texts = [
            CompletionChoice(index=index, text=part.text, logprobs=self._text_logprobs(part.rows), finish_reason=part.finish or "length")
            for index, part in parts
        ]
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self.facts.name,
            choices=texts,
            usage=self.usage(),
            service_tier=self.terms.tier,
            system_fingerprint=self.facts.fingerprint,
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
            "model": self.facts.name,
            "choices": choices,
            "system_fingerprint": self.facts.fingerprint,
        }
        if self.terms.tier is not None:
            body["service_tier"] = self.terms.tier
        if self.terms.metadata is not None:
            body["metadata"] = self.terms.metadata
        if with_usage:
            body["usage"] = usage.model_dump() if usage else None
        return sse(body)

    def opening(self, index: int) -> dict[str, object]:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def growth(self, index: int, growth: Growth) -> dict[str, object]:
        found = (self._chat_logprobs if self.terms.chat else self._text_logprobs)(growth.rows) if growth.rows else None
        said: dict[str, object] = {"delta": self._delta(index, growth)} if self.terms.chat else {"text": growth.text}
        return {"index": index, **said, "logprobs": found.model_dump() if found else None, "finish_reason": None}

    def _delta(self, index: int, growth: Growth) -> dict[str, object]:
        calls = [_called(piece, self.parts[index].calls[piece.index]) for piece in growth.calls]
        return ({"content": growth.text} if growth.text or not calls else {}) | ({"tool_calls": calls} if calls else {})

    def ending(self, index: int) -> dict[str, object]:
        said: dict[str, object] = {"delta": {}} if self.terms.chat else {"text": ""}
        return {"index": index, **said, "logprobs": None, "finish_reason": self.parts[index].finish}


def _message(part: Part) -> AnswerMessage:
    calls = [ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in part.calls]
    return AnswerMessage(content=part.text if part.text or not calls else None, tool_calls=calls or None)


def _called(piece: CallStart | CallPart, call: Call) -> dict[str, object]:
    """Of a call's pieces the first names it, the others add to its arguments."""
    if isinstance(piece, CallStart):
        return {"index": piece.index, "id": call.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def sse(body: dict[str, object]) -> str:
    """What some clients take for the end of a line is escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text.translate(BREAKS)}\n\n"


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
            if growth.text or growth.rows or growth.calls:
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
