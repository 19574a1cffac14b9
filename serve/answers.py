"""From engine events to OpenAI's bodies: whole answers and server-sent events, for chat and completions alike.

Knows no router and no tokenizer.
"""

import json
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from app.engine.request import Delta, Event, Failed, Finish
from app.errors import LitmusError
from app.schemas import AnswerMessage, ChatChoice, ChatResponse, CompletionChoice, CompletionResponse, Usage


@dataclass(slots=True)
class Part:
    """One choice as it grows."""

    text: str = ""
    tokens: int = 0
    finish: Finish | None = None


@dataclass(slots=True)
class Answer:
    """A request's answer: `ids` are its jobs in the order of the choices."""

    id: str
    model: str
    chat: bool
    ids: list[str]
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [Part() for _ in self.ids]

    def usage(self) -> Usage:
        completion = sum(part.tokens for part in self.parts)
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=completion, total_tokens=self.prompt_tokens + completion)

    def take(self, event: Event) -> int:
        """Add a delta to its choice; returns the choice's index. Raises the error of a failed job."""
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Delta)
        index = self.ids.index(event.id)
        part = self.parts[index]
        part.text += event.text
        part.tokens += event.tokens
        part.finish = event.finish
        return index

    def body(self) -> ChatResponse | CompletionResponse:
        if self.chat:
            choices = [
                ChatChoice(index=index, message=AnswerMessage(content=part.text), finish_reason=part.finish or "length")
                for index, part in enumerate(self.parts)
            ]
            return ChatResponse(id=self.id, created=self.created, model=self.model, choices=choices, usage=self.usage())
        texts = [
            CompletionChoice(index=index, text=part.text, finish_reason=part.finish or "length") for index, part in enumerate(self.parts)
        ]
        return CompletionResponse(id=self.id, created=self.created, model=self.model, choices=texts, usage=self.usage())

    def chunk(self, choices: list[dict[str, object]], usage: Usage | None, with_usage: bool) -> str:
        body: dict[str, object] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if with_usage:
            body["usage"] = usage.model_dump() if usage else None
        return sse(body)

    def choice(self, index: int, text: str, finish: Finish | None, opening: bool = False) -> dict[str, object]:
        if not self.chat:
            return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        delta = {"role": "assistant", "content": ""} if opening else {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def sse(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def stream(answer: Answer, events: AsyncIterable[Event], with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer. A failure in mid-stream is sent as an error event; `[DONE]` always ends the stream."""
    try:
        if answer.chat:
            for index in range(len(answer.ids)):
                yield answer.chunk([answer.choice(index, "", None, opening=True)], None, with_usage)
        async for event in events:
            index = answer.take(event)
            finish = answer.parts[index].finish
            text = event.text if isinstance(event, Delta) else ""
            if text:
                yield answer.chunk([answer.choice(index, text, None)], None, with_usage)
            if finish is not None:
                yield answer.chunk([answer.choice(index, "", finish)], None, with_usage)
        if with_usage:
            yield answer.chunk([], answer.usage(), with_usage)
    except LitmusError as error:
        yield sse({**error.envelope()})
    yield "data: [DONE]\n\n"


async def whole(answer: Answer, events: AsyncIterable[Event]) -> ChatResponse | CompletionResponse:
    async for event in events:
        answer.take(event)
    return answer.body()
