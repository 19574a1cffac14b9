"""What chat and completions share: jobs go through the router, and come back as one JSON body or as server-sent events."""

import uuid
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from app.errors import InvalidRequest
from app.schemas import ChatRequest, CompletionRequest
from serve.routes.service import EventStream, Model, Service, unless_gone
from serve.wire.answers import Answer, stream, whole
from serve.wire.requests import Prompt, Terms, jobs_of

SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "JSON, or events with `stream`"}}


async def respond(
    service: Service, model: Model, body: ChatRequest | CompletionRequest, terms: Terms, prompts: list[Prompt], request: Request
) -> Response:
    """Raises `QueueFull` before the first byte of a stream, so that a full queue is still a 429."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    router, tokenizer, facts = service.router, model.tokenizer, model.facts
    id = f"{'chatcmpl' if terms.chat else 'cmpl'}-{uuid.uuid4().hex}"
    jobs = await service.work(request, jobs_of, id, body, terms, prompts, tokenizer, facts)
    answer = Answer(id, facts, terms, prompts, [job.id for job in jobs], tokenizer)
    if not body.stream:

        async def collect() -> None:
            async with router.open([*jobs], facts.name) as ticket:
                await whole(answer, ticket)

        await unless_gone(request, collect())
        return Response(await service.work(request, lambda: answer.body().model_dump_json().encode()), media_type="application/json")
    opened = router.open([*jobs], facts.name)
    ticket = await opened.__aenter__()
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(stream(answer, ticket, with_usage), opened)
