"""`POST /v1/embeddings`: texts to engine jobs, and the pooled hidden states of each to a vector in OpenAI's form."""

import asyncio
import base64
import struct
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.engine.events import Embedded, Failed
from app.engine.facts import Facts
from app.engine.request import Embed
from app.errors import ContextTooLong, InvalidRequest, QueueFull
from app.schemas import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from app.tokenizer import Tokenizer
from serve.routes.service import Model, Service, cancel_on_disconnect, timeout_of
from serve.routes.state import ERROR_RESPONSES
from serve.wire.requests import check_token_ids, used_tier
from serve.workers.fleet import Fleet
from serve.workers.router import too_late

LOOK_S = 0.05  # between two looks at a full queue, and for a worker


def add_embeddings(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/embeddings", tags=["embeddings"], summary="Vectors of texts", response_model=EmbeddingResponse, responses=ERROR_RESPONSES
    )
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """The hidden states of the served model after its last norm, pooled and scaled to length 1.

        The model was trained to predict the next token, not to embed. Unrelated texts have a high cosine similarity, too, so compare
        similarities with each other; for search by meaning a trained embedding model is far better.
        """
        service.check_user(body.user, "user")
        service.check_user(body.safety_identifier, "safety_identifier")
        model = service.model(body.model)
        _check_dimensions(body.dimensions, model.facts)
        timeout_s = timeout_of(request, body.timeout_s)
        jobs = await service.run_in_text_pool(request, make_jobs, body, model)
        items = await cancel_on_disconnect(request, _items(service, jobs, model.fleet, body, timeout_s))
        return Response(_compose(body, model.facts, jobs, items), media_type="application/json")


def _check_dimensions(dimensions: int | None, facts: Facts) -> None:
    if dimensions not in {None, facts.hidden_size}:
        message = f"the vectors of {facts.name} have {facts.hidden_size} dimensions and are not shortened: send {facts.hidden_size} or none"
        raise InvalidRequest(message, param="dimensions")


def make_jobs(body: EmbeddingRequest, model: Model) -> list[Embed]:
    id, tier = f"embd-{uuid.uuid4().hex}", used_tier(body.service_tier) or "default"
    jobs: list[Embed] = []
    for param, item in body.items.items():
        tokens = _tokens_of(item, param, model.tokenizer, model.facts)
        jobs.append(Embed(f"{id}/{len(jobs)}", tokens, body.pooling, tier, model.facts.adapter))
    return jobs


def _tokens_of(item: str | list[int], param: str, tokenizer: Tokenizer, facts: Facts) -> tuple[int, ...]:
    tokens = tokenizer.encode(item, param) if isinstance(item, str) else tuple(item)
    if not tokens:
        raise InvalidRequest(f"the tokenizer of {facts.name} turns this into no tokens; send a longer text", param=param)
    if len(tokens) > facts.text_window:
        raise ContextTooLong(
            f"{param} has {len(tokens)} tokens, but {facts.name} reads at most {facts.text_window}{_limit(facts)} of a text in one piece: "
            "shorten the text or split it",
            param=param,
        )
    if not isinstance(item, str):
        check_token_ids(item, tokenizer, param)
    return tokens


def _limit(facts: Facts) -> str:
    """What keeps the window of a text shorter than the model could read; empty where nothing does."""
    if facts.text_window < facts.context:
        return " (the setting model.text_window)"
    return f" ({facts.context_limit})" if facts.context < facts.largest_context else ""


async def _items(service: Service, jobs: list[Embed], model: Fleet, body: EmbeddingRequest, timeout_s: float | None) -> list[bytes]:
    """The JSON of each job's vector, in their order. Raises the error of the first job that fails; the others are cancelled."""
    limit_s = service.router.queue_settings.timeout_s if timeout_s is None else timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return await _in_portions(service, jobs, model, body, limit_s)
    except TimeoutError:
        raise too_late(limit_s) from None


async def _in_portions(service: Service, jobs: list[Embed], model: Fleet, body: EmbeddingRequest, limit_s: float | None) -> list[bytes]:
    """Of as many jobs at a time as leave room for other requests. Raises `QueueFull` where there is none for the first; what has begun
    waits until there is, and for the next worker where there is none.
    """
    lengths = [len(job.tokens) for job in jobs]
    items: list[bytes] = []
    while (done := len(items)) < len(jobs):
        if done:
            await _wait_for_worker(service, model)
        portion = jobs[done : done + model.portion(lengths[done:])]
        try:
            vectors = await _run_jobs(service, portion, model, limit_s)
        except QueueFull:
            if not done:
                raise
            await asyncio.sleep(LOOK_S)
            continue
        items += await asyncio.get_running_loop().run_in_executor(service.text_pool, _dumped, done, vectors, body)
    return items


async def _wait_for_worker(service: Service, model: Fleet) -> None:
    """As long as a job waits whose worker has died."""
    router, clock = service.router, asyncio.get_running_loop()
    until_s = clock.time() + router.queue_settings.resume_wait_s
    while model in router.fleets and model.status == "loading" and not router.draining and clock.time() < until_s:
        await asyncio.sleep(LOOK_S)


async def _run_jobs(service: Service, jobs: list[Embed], model: Fleet, timeout_s: float | None) -> list[bytes]:
    vectors: dict[str, bytes] = {}
    async with service.router.open([*jobs], model, timeout_s) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Embedded):
                vectors[event.id] = event.vector
    return [vectors[job.id] for job in jobs]


def _dumped(first: int, vectors: Sequence[bytes], body: EmbeddingRequest) -> list[bytes]:
    encode = as_base64 if body.encoding_format == "base64" else as_floats
    items = (Embedding(index=index, embedding=encode(vector)) for index, vector in enumerate(vectors, first))
    return [item.model_dump_json().encode() for item in items]


def _compose(body: EmbeddingRequest, facts: Facts, jobs: Sequence[Embed], items: Sequence[bytes]) -> bytes:
    """The JSON of the response body."""
    tokens = sum(len(job.tokens) for job in jobs)
    response = EmbeddingResponse(
        data=[],
        model=facts.name,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        service_tier=used_tier(body.service_tier),
    )
    return response.model_dump_json().encode().replace(b'"data":[]', b'"data":[%b]' % b",".join(items), 1)


def as_floats(vector: bytes) -> list[float]:
    """The numbers of a vector in float32, little-endian."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
