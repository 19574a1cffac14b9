"""The routes that work: from a validated body to jobs, through the router, and back. Here wire, tokenizer and router meet."""

import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.engine.request import Columns, Event, Failed, Scored
from app.errors import EngineFailed, InvalidRequest
from app.schemas import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    Method,
    ScoreFailure,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from app.schemas import Score as ScoreBody
from app.scoring.score import Reading, assess
from app.tokenizer import Tokenizer
from serve.answers import Answer, stream, whole
from serve.conversation import prompt_of
from serve.forms import shown
from serve.generate import add_generate
from serve.jobs import (
    Prompt,
    Terms,
    chat_terms,
    check_defaults,
    completion_terms,
    given_prompts,
    jobs_of,
    method_of,
    prompts_of,
    readings_of,
    room,
    tier_of,
)
from serve.router import Router
from serve.service import EventStream, Model, Service, unless_gone
from serve.state import ERRORS, add_state
from serve.tokens import add_tokens

SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "JSON, or events with `stream`"}}


def create_routes(router: Router, tokenizers: Mapping[str, Tokenizer], started: int, banned: frozenset[str] = frozenset()) -> APIRouter:
    """`tokenizers` by the models' names; `banned` are the users whose requests are refused."""
    routes = APIRouter()
    for tokenizer in tokenizers.values():
        check_defaults(tokenizer.defaults)
    service = Service(router, tokenizers, ThreadPoolExecutor(2, "texts"), banned)

    add_state(routes, router, started)
    add_tokens(routes, service)
    add_generate(routes, service)

    @routes.post(
        "/v1/chat/completions", tags=["chat"], summary="Continue a conversation", response_model=ChatResponse, responses=ERRORS | SSE
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        service.check_user(body.user)
        model = service.model(body.model)
        prompt = Prompt(await service.work(prompt_of, body.messages, shown(body), model.tokenizer))
        room(prompt.ids, None, model.facts, "messages")
        terms = await service.compile(chat_terms, body, model.tokenizer)
        return await _generate(service, model, body, terms, [prompt], request)

    @routes.post("/v1/completions", tags=["chat"], summary="Continue a text", response_model=CompletionResponse, responses=ERRORS | SSE)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.check_user(body.user)
        model = service.model(body.model)
        terms = completion_terms(body)
        service.router.check(len(given_prompts(body)) * terms.copies, model.facts.name)
        prompts = await service.work(prompts_of, body, model.tokenizer, model.facts)
        return await _generate(service, model, body, terms, prompts, request)

    @routes.post("/v1/score", tags=["score"], summary="Did a model write this?", response_model=ScoreResponse, responses=ERRORS)
    async def score(body: ScoreRequest, request: Request) -> Response:
        model = service.model(body.model)
        facts = model.facts
        method = method_of(body.method, facts)
        id = f"score-{uuid.uuid4().hex}"
        readings = await service.work(readings_of, id, body, method, model.tokenizer, facts)
        ended = await unless_gone(request, _score(router, readings, facts.name))

        def compose() -> bytes:
            data = [_scored(i, reading, ended.get(reading.job.id), method, body.return_tokens) for i, reading in enumerate(readings)]
            tokens = sum(len(reading.job.tokens) for reading in readings)
            usage = Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
            made = ScoreResponse(
                id=id,
                created=int(time.time()),
                model=facts.name,
                observer=facts.observer,
                data=data,
                usage=usage,
                service_tier=tier_of(body.service_tier),
            )
            return made.model_dump_json().encode()

        return Response(await service.work(compose), media_type="application/json")

    return routes


async def _generate(
    service: Service, model: Model, body: ChatRequest | CompletionRequest, terms: Terms, prompts: list[Prompt], request: Request
) -> Response:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    router, tokenizer, facts = service.router, model.tokenizer, model.facts
    id = f"{'chatcmpl' if terms.chat else 'cmpl'}-{uuid.uuid4().hex}"
    jobs = await service.work(jobs_of, id, body, terms, prompts, tokenizer, facts)
    answer = Answer(id, facts, terms, prompts, [job.id for job in jobs], tokenizer)
    if not body.stream:

        async def collect() -> None:
            async with router.open([*jobs], facts.name) as ticket:
                await whole(answer, ticket)

        await unless_gone(request, collect())
        return Response(await service.work(lambda: answer.body().model_dump_json().encode()), media_type="application/json")
    opened = router.open([*jobs], facts.name)
    ticket = await opened.__aenter__()  # here, not in the stream: a full queue is still a 429
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(stream(answer, ticket, with_usage), opened)


async def _score(router: Router, readings: list[Reading], model: str) -> dict[str, Event]:
    """How each text's job ended, by its id."""
    jobs = [reading.job for reading in readings if reading.job.windows]
    async with router.open(list(jobs), model) as ticket:
        return {event.id: event async for event in ticket}


def _scored(index: int, reading: Reading, event: Event | None, method: Method, with_tokens: bool) -> ScoreBody | ScoreFailure:
    if isinstance(event, Failed):
        if isinstance(event.error, EngineFailed):
            return ScoreFailure(index=index, message=event.error.message, code=event.error.code)
        raise event.error
    columns = event.columns if isinstance(event, Scored) else Columns()
    return assess(index, method, columns, reading, with_tokens)
