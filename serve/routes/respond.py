"""What chat, completions and responses share: send the jobs through the router, and return one JSON body or server-sent events."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from app.engine.request import Generate
from app.errors import InvalidRequest
from app.schemas import ChatRequest, CompletionRequest, StreamOptions
from serve.routes.service import EventStream, Model, Service, cancel_on_disconnect, timeout_of
from serve.wire.answers import Answer, UsageChunks, collect, stream
from serve.wire.requests import AnswerOptions, Prompt, make_jobs
from serve.workers.fleet import Fleet
from serve.workers.flight import JobEvents

SSE_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "JSON, or server-sent events with `stream`"}
}


async def respond(
    service: Service, model: Model, body: ChatRequest | CompletionRequest, options: AnswerOptions, prompts: list[Prompt], request: Request
) -> Response:
    """Raises `QueueFull` before the first byte of a stream, so that a full queue is still a 429."""
    check_stream(body)
    tokenizer, facts = model.tokenizer, model.facts
    timeout_s = timeout_of(request, body.timeout_s)
    id = f"{'chatcmpl' if options.chat else 'cmpl'}-{uuid.uuid4().hex}"
    jobs = await service.run_in_text_pool(request, make_jobs, id, body, options, prompts, tokenizer, facts)
    answer = Answer(id, facts, options, prompts, [job.id for job in jobs], tokenizer)
    if body.stream:
        usage_chunks = _usage_chunks(body.stream_options)
        return await send_stream(service, model.fleet, jobs, lambda events: stream(answer, events, usage_chunks), timeout_s)
    await run_jobs(service, model.fleet, jobs, lambda events: collect(answer, events), request, timeout_s)
    content = await service.run_in_text_pool(request, lambda: answer.body().model_dump_json().encode())
    return Response(content, media_type="application/json")


def check_stream(body: ChatRequest | CompletionRequest) -> None:
    """Raises `InvalidRequest` for a field that only a stream has a use for."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if body.return_progress and not body.stream:
        raise InvalidRequest("return_progress needs stream: true", param="return_progress")


async def send_stream(
    service: Service,
    model: Fleet,
    jobs: list[Generate],
    lines: Callable[[JobEvents], AsyncIterator[str]],
    timeout_s: float | None,
) -> EventStream:
    """Start the jobs; `lines` makes server-sent events of theirs."""
    jobs_context = service.router.open([*jobs], model, timeout_s)
    return EventStream(lines(await jobs_context.__aenter__()), jobs_context)


async def run_jobs(
    service: Service,
    model: Fleet,
    jobs: list[Generate],
    collect: Callable[[JobEvents], Awaitable[None]],
    request: Request,
    timeout_s: float | None,
) -> None:
    """Run the jobs until `collect` has taken all of their events, or the client leaves."""

    async def run() -> None:
        async with service.router.open([*jobs], model, timeout_s) as events:
            await collect(events)

    await cancel_on_disconnect(request, run())


def _usage_chunks(options: StreamOptions | None) -> UsageChunks:
    if options is None or not options.include_usage:
        return "none"
    return "all" if options.continuous_usage_stats else "last"
