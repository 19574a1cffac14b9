"""`POST /v1/embeddings`: texts to engine jobs, and the pooled hidden states of each to a vector in OpenAI's form."""

import base64
import struct
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.engine.events import Embedded, Failed
from app.engine.facts import Facts
from app.engine.request import Embed
from app.errors import ContextTooLong, InvalidRequest
from app.schemas import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from app.tokenizer import Tokenizer
from serve.routes.service import Model, Service, cancel_on_disconnect, timeout_of
from serve.routes.state import ERROR_RESPONSES
from serve.wire.requests import check_token_ids, used_tier
from serve.workers.fleet import Fleet


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
        service.router.check_job_count(len(body.items), model.facts.name)
        timeout_s = timeout_of(request, body.timeout_s)
        jobs = await service.run_in_text_pool(request, make_jobs, body, model)
        vectors = await cancel_on_disconnect(request, _run_jobs(service, jobs, model.fleet, timeout_s))
        content = await service.run_in_text_pool(request, _compose, body, model.facts, jobs, vectors)
        return Response(content, media_type="application/json")


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
    if len(tokens) > facts.context:
        raise ContextTooLong(
            f"{param} has {len(tokens)} tokens, but the context of {facts.name} holds {facts.context}: shorten the text or split it",
            param=param,
        )
    if not isinstance(item, str):
        check_token_ids(item, tokenizer, param)
    return tokens


async def _run_jobs(service: Service, jobs: list[Embed], model: Fleet, timeout_s: float | None) -> list[bytes]:
    """The vectors of the jobs, in their order. Raises the error of the first that fails; the others are cancelled."""
    vectors: dict[str, bytes] = {}
    async with service.router.open([*jobs], model, timeout_s) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Embedded):
                vectors[event.id] = event.vector
    return [vectors[job.id] for job in jobs]


def _compose(body: EmbeddingRequest, facts: Facts, jobs: Sequence[Embed], vectors: Sequence[bytes]) -> bytes:
    """The JSON of the response body."""
    encode = as_base64 if body.encoding_format == "base64" else as_floats
    tokens = sum(len(job.tokens) for job in jobs)
    response = EmbeddingResponse(
        data=[Embedding(index=index, embedding=encode(vector)) for index, vector in enumerate(vectors)],
        model=facts.name,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        service_tier=used_tier(body.service_tier),
    )
    return response.model_dump_json().encode()


def as_floats(vector: bytes) -> list[float]:
    """The numbers of a vector in float32, little-endian."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
