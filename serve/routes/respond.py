"""What chat and completions share: send the jobs through the router, and return one JSON body or a stream of server-sent events."""

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from app.engine.request import Event
from app.errors import InvalidRequest
from app.schemas import ChatRequest, CompletionRequest, StreamOptions
from serve.routes.service import EventStream, Model, Service, cancel_on_disconnect
from serve.wire.answers import Answer, UsageChunks, collect, stream
from serve.wire.requests import AnswerOptions, Prompt, make_jobs

SSE_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "JSON, or server-sent events with `stream`"}
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: `options` and `prompts` are made of its body."""

    model: Model
    body: ChatRequest | CompletionRequest
    options: AnswerOptions
    prompts: list[Prompt]


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is written: what its id begins with, its body, and its server-sent events."""

    id_prefix: str
    body: Callable[[Answer], BaseModel]
    stream: Callable[[Answer, AsyncIterable[Event]], AsyncIterator[str]]


async def respond(
    service: Service, model: Model, body: ChatRequest | CompletionRequest, options: AnswerOptions, prompts: list[Prompt], request: Request
) -> Response:
    """Answer in OpenAI's form."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    return await respond_in(_openai_form(body, options), Asked(model, body, options, prompts), service, request)


async def respond_in(form: Form, asked: Asked, service: Service, request: Request) -> Response:
    """Raises `QueueFull` before the first byte of a stream, so that a full queue is still a 429."""
    body, router, tokenizer, facts = asked.body, service.router, asked.model.tokenizer, asked.model.facts
    id = f"{form.id_prefix}{uuid.uuid4().hex}"
    jobs = await service.run_in_text_pool(request, make_jobs, id, body, asked.options, asked.prompts, tokenizer, facts)
    answer = Answer(id, facts, asked.options, asked.prompts, [job.id for job in jobs], tokenizer)
    if not body.stream:

        async def run_jobs() -> None:
            async with router.open([*jobs], facts.name) as events:
                await collect(answer, events)

        await cancel_on_disconnect(request, run_jobs())
        content = await service.run_in_text_pool(request, lambda: form.body(answer).model_dump_json().encode())
        return Response(content, media_type="application/json")
    jobs_context = router.open([*jobs], facts.name)
    events = await jobs_context.__aenter__()
    return EventStream(form.stream(answer, events), jobs_context)


def _openai_form(body: ChatRequest | CompletionRequest, options: AnswerOptions) -> Form:
    usage_chunks = _usage_chunks(body.stream_options)
    return Form("chatcmpl-" if options.chat else "cmpl-", Answer.body, lambda answer, events: stream(answer, events, usage_chunks))


def _usage_chunks(options: StreamOptions | None) -> UsageChunks:
    if options is None or not options.include_usage:
        return "none"
    return "all" if options.continuous_usage_stats else "last"
