"""The routes that work: from a validated body to jobs, through the router, and back. Here wire, tokenizer and router meet."""

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.engine.request import Columns, Event, Facts, Failed, Generate, Sampling, Score, Scored
from app.errors import ContextTooLong, EngineFailed, InvalidRequest, NotReady
from app.schemas import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    Method,
    SamplingFields,
    ScoreFailure,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from app.schemas import Score as ScoreBody
from app.scoring.score import Reading, assess, clean
from app.scoring.windows import windows
from app.tokenizer import Tokenizer
from serve.answers import Answer, stream, whole
from serve.router import Router, Ticket
from serve.state import ERRORS, add_state, check_model, methods_of

T = TypeVar("T")
MAX_WINDOWS = 64  # of half a context each: how long a text to score may be
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
    service = Service(router, tokenizer, ThreadPoolExecutor(2, "texts"))

    add_state(routes, router, started)

    @routes.post(
        "/v1/chat/completions", tags=["chat"], summary="Continue a conversation", response_model=ChatResponse, responses=ERRORS | SSE
    )
    async def chat(body: ChatRequest, request: Request) -> Any:
        facts = router.served()
        check_model(body.model, facts)
        prompt = await service.work(tokenizer.chat, _messages(body))
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise InvalidRequest("give max_tokens or max_completion_tokens, not both", param="max_tokens")
        return await _generate(service, body, [prompt], limit, request, chat=True)

    @routes.post("/v1/completions", tags=["chat"], summary="Continue a text", response_model=CompletionResponse, responses=ERRORS | SSE)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        check_model(body.model, router.served())
        prompts = await service.work(_prompts, body, tokenizer)
        return await _generate(service, body, prompts, body.max_tokens, request, chat=False)

    @routes.post("/v1/score", tags=["score"], summary="Did a model write this?", response_model=ScoreResponse, responses=ERRORS)
    async def score(body: ScoreRequest, request: Request) -> Response:
        facts = router.served()
        check_model(body.model, facts)
        method = _method(body.method, facts)
        id = f"score-{uuid.uuid4().hex}"
        readings = await service.work(_readings, id, body, method, tokenizer, facts)
        ended = await _unless_gone(request, _score(router, readings))

        def compose() -> bytes:
            data = [_scored(i, reading, ended.get(reading.job.id), method, body.return_tokens) for i, reading in enumerate(readings)]
            tokens = sum(len(reading.job.tokens) for reading in readings)
            usage = Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
            made = ScoreResponse(id=id, created=int(time.time()), model=facts.name, observer=facts.observer, data=data, usage=usage)
            return made.model_dump_json().encode()

        return Response(await service.work(compose), media_type="application/json")

    return routes


def sampling_of(body: SamplingFields, defaults: dict[str, Any]) -> Sampling:
    """What the request says, else what the model's generation_config.json says, else plain sampling."""

    def pick(name: str, plain: float) -> float:
        asked = getattr(body, name)
        return asked if asked is not None else plain if defaults.get(name) is None else defaults[name]

    return Sampling(
        temperature=float(pick("temperature", 1.0)),
        top_k=int(pick("top_k", 0)),
        top_p=float(pick("top_p", 1.0)),
        min_p=float(pick("min_p", 0.0)),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )


async def _generate(
    service: Service,
    body: SamplingFields,
    prompts: list[tuple[int, ...]],
    limit: int | None,
    request: Request,
    chat: bool,
) -> ChatResponse | CompletionResponse | StreamingResponse:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    router, facts = service.router, service.router.served()
    id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    sampling = sampling_of(body, service.tokenizer.defaults)
    room = [_room(prompt, limit, facts, "messages" if chat else "prompt") for prompt in prompts]
    jobs = [
        Generate(
            id=f"{id}/{place * body.n + copy}",
            prompt=prompt,
            max_tokens=most,
            sampling=replace(sampling, seed=sampling.seed + copy),
            stop=body.stop_words,
        )
        for place, (prompt, most) in enumerate(zip(prompts, room, strict=True))
        for copy in range(body.n)
    ]
    answer = Answer(id, facts.name, chat, [job.id for job in jobs], sum(len(prompt) for prompt in prompts))
    if not body.stream:

        async def collect() -> ChatResponse | CompletionResponse:
            async with router.open(list(jobs)) as ticket:
                return await whole(answer, ticket)

        return await _unless_gone(request, collect())
    opened = router.open(list(jobs))
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


def _readings(id: str, body: ScoreRequest, method: Method, tokenizer: Tokenizer, facts: Facts) -> list[Reading]:
    made = []
    for index, raw in enumerate(body.texts):
        text = clean(raw)
        if not text.content.strip():
            raise InvalidRequest(f"text {index} holds nothing but zero-width characters", param="input")
        encoded = tokenizer.read(text.content, "input")
        most = MAX_WINDOWS * facts.context // 2
        if len(encoded.ids) > most:
            raise InvalidRequest(
                f"text {index} has {len(encoded.ids)} tokens; at most {most} are scored at once: send it in parts", param="input"
            )
        job = Score(f"{id}/{index}", encoded.ids, windows(len(encoded.ids), facts.context), method == "binoculars")
        made.append(Reading(text, encoded, job))
    return made


def _method(asked: Method | None, facts: Facts) -> Method:
    allowed = methods_of(facts)
    if asked is not None and asked not in allowed:
        raise InvalidRequest(f"method {asked} needs an observer, and none is loaded; {allowed[0]} needs none", param="method")
    return asked or allowed[0]


def _messages(body: ChatRequest) -> list[dict[str, str]]:
    for index, message in enumerate(body.messages):
        if message.role == "user" and not message.text.strip():
            raise InvalidRequest(f"messages.{index}.content is empty or blank", param=f"messages.{index}.content")
    roles = {"developer": "system"}
    return [{"role": roles.get(message.role, message.role), "content": message.text} for message in body.messages]


def _prompts(body: CompletionRequest, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if given and isinstance(given[0], int):
        given = [given]
    if not given or any(not item or (isinstance(item, str) and not item.strip()) for item in given):
        raise InvalidRequest("the prompt is empty or blank", param="prompt")
    made = []
    for item in given:
        ids = tokenizer.encode(item, "prompt") if isinstance(item, str) else tuple(item)
        if not all(0 <= token < len(tokenizer) for token in ids):
            raise InvalidRequest(f"token ids must lie in 0..{len(tokenizer) - 1}", param="prompt")
        made.append(ids)
    return made


def _room(prompt: tuple[int, ...], limit: int | None, facts: Facts, param: str) -> int:
    """How many tokens the answer may have. Raises `ContextTooLong` with the numbers."""
    left = facts.context - len(prompt)
    if left < 1:
        raise ContextTooLong(f"the prompt has {len(prompt)} tokens, the context of {facts.name} holds {facts.context}", param=param)
    if limit is not None and limit > left:
        raise ContextTooLong(
            f"the prompt has {len(prompt)} tokens and max_tokens is {limit}: together {len(prompt) + limit}, but the context of "
            f"{facts.name} holds {facts.context}; ask for at most {left}",
            param="max_tokens",
        )
    return left if limit is None else limit


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
