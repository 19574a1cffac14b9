"""The routes that work: from a validated body to jobs, through the router, and back. Here wire, tokenizer and router meet."""

import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import InvalidRequest
from app.schemas import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
)
from app.scoring.detector import Detector
from app.tokenizer import Tokenizer
from serve.routes.generate import add_generate
from serve.routes.score import add_score
from serve.routes.service import EventStream, Model, Service, unless_gone
from serve.routes.state import ERRORS, add_state
from serve.routes.tokens import add_tokens
from serve.wire.answers import Answer, stream, whole
from serve.wire.conversation import prompt_of
from serve.wire.requests import (
    Prompt,
    Terms,
    chat_terms,
    check_defaults,
    completion_terms,
    given_prompts,
    jobs_of,
    prompts_of,
    room,
)
from serve.wire.structured import shown
from serve.workers.router import Router

SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "JSON, or events with `stream`"}}


def create_routes(
    router: Router,
    tokenizers: Mapping[str, Tokenizer],
    started: int,
    banned: frozenset[str] = frozenset(),
    detectors: Mapping[str, Detector] = MappingProxyType({}),
) -> APIRouter:
    """`tokenizers` and `detectors` by the models' names; `banned` are the users whose requests are refused."""
    routes = APIRouter()
    for tokenizer in tokenizers.values():
        check_defaults(tokenizer.defaults)
    service = Service(router, tokenizers, ThreadPoolExecutor(2, "texts"), banned)

    add_state(routes, router, started)
    add_tokens(routes, service)
    add_generate(routes, service)
    add_score(routes, service, detectors)

    @routes.post(
        "/v1/chat/completions", tags=["chat"], summary="Continue a conversation", response_model=ChatResponse, responses=ERRORS | SSE
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        service.check_user(body.user)
        model = service.model(body.model)
        prompt = Prompt(await service.work(request, prompt_of, body.messages, shown(body), model.tokenizer))
        room(prompt.ids, None, model.facts, "messages")
        held = service.compile if body.tools or body.response_format else service.work
        terms = await held(request, chat_terms, body, model.tokenizer)
        return await _generate(service, model, body, terms, [prompt], request)

    @routes.post("/v1/completions", tags=["chat"], summary="Continue a text", response_model=CompletionResponse, responses=ERRORS | SSE)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.check_user(body.user)
        model = service.model(body.model)
        terms = completion_terms(body)
        service.router.check(len(given_prompts(body)) * terms.copies, model.facts.name)
        prompts = await service.work(request, prompts_of, body, model.tokenizer, model.facts)
        return await _generate(service, model, body, terms, prompts, request)

    return routes


async def _generate(
    service: Service, model: Model, body: ChatRequest | CompletionRequest, terms: Terms, prompts: list[Prompt], request: Request
) -> Response:
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
    ticket = await opened.__aenter__()  # here, not in the stream: a full queue is still a 429
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(stream(answer, ticket, with_usage), opened)
