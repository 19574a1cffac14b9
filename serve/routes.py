"""The routes that work: from a validated body to jobs, through the router, and back. Here wire, tokenizer and router meet."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.engine.request import Columns, Event, Failed, Scored
from app.errors import EngineFailed, InvalidRequest, NotReady
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
from serve.jobs import (
    Prompt,
    Terms,
    chat_terms,
    check_defaults,
    completion_terms,
    conversation,
    jobs_of,
    method_of,
    prompts_of,
    readings_of,
    tier_of,
)
from serve.router import Router, Ticket
from serve.state import ERRORS, add_state, check_model

T = TypeVar("T")
SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "JSON, or events with `stream`"}}


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    router: Router
    tokenizer: Tokenizer
    pool: ThreadPoolExecutor

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long for a long text beside the event loop, and not on the pool that LitServe's reader needs."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)


class EventStream(StreamingResponse):
    """Server-sent events of an open ticket, which is closed whether the answer was whole, the client left or it never listened."""

    def __init__(self, lines: AsyncIterator[str], opened: AbstractAsyncContextManager[Ticket]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._opened.__aexit__(None, None, None)


def create_routes(router: Router, tokenizer: Tokenizer, started: int) -> APIRouter:
    routes = APIRouter()
    check_defaults(tokenizer.defaults)
    service = Service(router, tokenizer, ThreadPoolExecutor(2, "texts"))

    add_state(routes, router, started)

    @routes.post(
        "/v1/chat/completions", tags=["chat"], summary="Continue a conversation", response_model=ChatResponse, responses=ERRORS | SSE
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        check_model(body.model, router.served())
        terms = chat_terms(body)
        return await _generate(service, body, terms, await service.work(conversation, body, tokenizer), request)

    @routes.post("/v1/completions", tags=["chat"], summary="Continue a text", response_model=CompletionResponse, responses=ERRORS | SSE)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        check_model(body.model, router.served())
        terms = completion_terms(body)
        return await _generate(service, body, terms, await service.work(prompts_of, body, tokenizer), request)

    @routes.post("/v1/score", tags=["score"], summary="Did a model write this?", response_model=ScoreResponse, responses=ERRORS)
    async def score(body: ScoreRequest, request: Request) -> Response:
        facts = router.served()
        check_model(body.model, facts)
        method = method_of(body.method, facts)
        id = f"score-{uuid.uuid4().hex}"
        readings = await service.work(readings_of, id, body, method, tokenizer, facts)
        ended = await _unless_gone(request, _score(router, readings))

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
    service: Service, body: ChatRequest | CompletionRequest, terms: Terms, prompts: list[Prompt], request: Request
) -> Response:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    router, tokenizer, facts = service.router, service.tokenizer, service.router.served()
    id = f"{'chatcmpl' if terms.chat else 'cmpl'}-{uuid.uuid4().hex}"
    jobs = await service.work(jobs_of, id, body, terms, prompts, tokenizer, facts)
    answer = Answer(id, facts.name, terms, prompts, [job.id for job in jobs], tokenizer)
    if not body.stream:

        async def collect() -> None:
            async with router.open([*jobs]) as ticket:
                await whole(answer, ticket)

        await _unless_gone(request, collect())
        return Response(await service.work(lambda: answer.body().model_dump_json().encode()), media_type="application/json")
    opened = router.open([*jobs])
    ticket = await opened.__aenter__()  # here, not in the stream: a full queue is still a 429
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(stream(answer, ticket, with_usage), opened)


async def _score(router: Router, readings: list[Reading]) -> dict[str, Event]:
    """How each text's job ended, by its id."""
    jobs = [reading.job for reading in readings if reading.job.windows]
    async with router.open(list(jobs)) as ticket:
        return {event.id: event async for event in ticket}


def _scored(index: int, reading: Reading, event: Event | None, method: Method, with_tokens: bool) -> ScoreBody | ScoreFailure:
    if isinstance(event, Failed):
        if isinstance(event.error, EngineFailed):
            return ScoreFailure(index=index, message=event.error.message, code=event.error.code)
        raise event.error
    columns = event.columns if isinstance(event, Scored) else Columns()
    return assess(index, method, columns, reading, with_tokens)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise NotReady("the client left before its answer was whole")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
