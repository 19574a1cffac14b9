"""`POST /tokenize` and `POST /detokenize`, with vLLM's bodies. No worker takes part."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import InvalidRequest
from app.schemas import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from app.tokenizer import Tokenizer
from serve.routes.service import Model, Service
from serve.routes.state import ERRORS
from serve.wire.conversation import prompt_of
from serve.wire.requests import check_tokens

REFUSED: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (400, 404, 413, 503)}


def add_tokens(routes: APIRouter, service: Service) -> None:
    @routes.post("/tokenize", tags=["tokens"], summary="Token ids of a text", response_model=TokenizeResponse, responses=REFUSED)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        return Response(await service.work(request, _tokenized, body, service.model(body.model)), media_type="application/json")

    @routes.post("/detokenize", tags=["tokens"], summary="Text of token ids", response_model=DetokenizeResponse, responses=REFUSED)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        return Response(await service.work(request, _detokenized, body, service.model(body.model)), media_type="application/json")


def _tokenized(body: TokenizeRequest, model: Model) -> bytes:
    ids = _ids(body, model.tokenizer)
    spellings = model.tokenizer.spellings(ids) if body.return_token_strs else None
    made = TokenizeResponse(count=len(ids), max_model_len=model.facts.context, tokens=list(ids), token_strs=spellings)
    return made.model_dump_json().encode()


def _ids(body: TokenizeRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        for field in ("add_generation_prompt", "tools"):
            if getattr(body, field) is not None:
                raise InvalidRequest(f"{field} needs messages", param=field)
        return tokenizer.encode(body.prompt, "prompt", body.add_special_tokens is not False)
    return prompt_of(body.messages or [], body.tools, tokenizer, body.add_generation_prompt is not False, bool(body.add_special_tokens))


def _detokenized(body: DetokenizeRequest, model: Model) -> bytes:
    check_tokens(body.tokens, model.tokenizer, "tokens", numbered=True)
    return DetokenizeResponse(prompt=model.tokenizer.full(body.tokens)).model_dump_json().encode()
