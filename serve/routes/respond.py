"""What chat and completions share: send the jobs through the router, and return one JSON body or a stream of server-sent events."""

import uuid
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from app.errors import InvalidRequest
from app.schemas import ChatRequest, CompletionRequest, StreamOptions
from serve.routes.service import EventStream, Model, Service, cancel_on_disconnect
from serve.wire.answers import Answer, UsageChunks, collect, stream
from serve.wire.requests import AnswerOptions, Prompt, make_jobs

SSE_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "JSON, or server-sent events with `stream`"}
}


async def respond(
    service: Service, model: Model, body: ChatRequest | CompletionRequest, options: AnswerOptions, prompts: list[Prompt], request: Request
) -> Response:
    """Raises `QueueFull` before the first byte of a stream, so that a full queue is still a 429."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    router, tokenizer, facts = service.router, model.tokenizer, model.facts
    id = f"{'chatcmpl' if options.chat else 'cmpl'}-{uuid.uuid4().hex}"
    jobs = await service.run_in_text_pool(request, make_jobs, id, body, options, prompts, tokenizer, facts)
    answer = Answer(id, facts, options, prompts, [job.id for job in jobs], tokenizer)
    if not body.stream:

        async def run_jobs() -> None:
            async with router.open([*jobs], facts.name) as events:
                await collect(answer, events)

        await cancel_on_disconnect(request, run_jobs())
        content = await service.run_in_text_pool(request, lambda: answer.body().model_dump_json().encode())
        return Response(content, media_type="application/json")
    jobs_context = router.open([*jobs], facts.name)
    events = await jobs_context.__aenter__()
    return EventStream(stream(answer, events, _usage_chunks(body.stream_options)), jobs_context)


def _usage_chunks(options: StreamOptions | None) -> UsageChunks:
    if options is None or not options.include_usage:
        return "none"
    return "all" if options.continuous_usage_stats else "last"
