"""`POST /tokenize` and `POST /detokenize`, with vLLM's bodies, and llama-server's `POST /apply-template`. They need the tokenizer only, no
worker.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import InvalidRequest
from app.schemas import ChatRequest, DetokenizeRequest, DetokenizeResponse, RenderedChat, TokenizeRequest, TokenizeResponse
from app.schemas.generation import RenderingFields
from app.tokenizer import Tokenizer
from serve.routes.chat import prepare
from serve.routes.respond import check_stream
from serve.routes.service import Model, Service
from serve.routes.state import ERROR_RESPONSES
from serve.wire.conversation import chat_token_ids, named_variables
from serve.wire.requests import check_token_ids
from serve.wire.unsupported import changes_nothing

TOKEN_ERRORS: dict[int | str, dict[str, Any]] = {status: ERROR_RESPONSES[status] for status in (400, 404, 413, 503)}


def add_tokens(routes: APIRouter, service: Service) -> None:
    @routes.post("/tokenize", tags=["tokens"], summary="Token ids of a text", response_model=TokenizeResponse, responses=TOKEN_ERRORS)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        model = service.model(body.model)
        _check(body)
        variables = named_variables(body.chat_template_kwargs, model.tokenizer)
        content = await service.run_in_text_pool(request, _tokenize, body, model, variables)
        return Response(content, media_type="application/json")

    @routes.post("/detokenize", tags=["tokens"], summary="Text of token ids", response_model=DetokenizeResponse, responses=TOKEN_ERRORS)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        content = await service.run_in_text_pool(request, _detokenize, body, service.model(body.model))
        return Response(content, media_type="application/json")

    @routes.post(
        "/apply-template",
        tags=["tokens"],
        summary="A conversation as the model reads it",
        response_model=RenderedChat,
        responses=TOKEN_ERRORS | {403: ERROR_RESPONSES[403]},
    )
    async def apply_template(body: ChatRequest, request: Request) -> Response:
        """What the same chat would be a prompt of; nothing is generated, and what the chat refuses is refused."""
        service.check_user(body.user, "user")
        service.check_user(body.safety_identifier, "safety_identifier")
        check_stream(body)
        model = service.model(body.model)
        prompt, _ = await prepare(service, model, body, request)
        content = await service.run_in_text_pool(request, lambda: RenderedChat(prompt=prompt.text).model_dump_json().encode())
        return Response(content, media_type="application/json")


def _tokenize(body: TokenizeRequest, model: Model, variables: Mapping[str, Any]) -> bytes:
    """The JSON of the response body."""
    ids = _token_ids(body, model.tokenizer, variables)
    strings = model.tokenizer.token_strings(ids) if body.return_token_strs else None
    response = TokenizeResponse(count=len(ids), max_model_len=model.facts.context, tokens=list(ids), token_strs=strings)
    return response.model_dump_json().encode()


def _check(body: TokenizeRequest) -> None:
    """Raises `InvalidRequest` unless it has either a text or a conversation, and of a text nothing that only a conversation has."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    for field in (*RenderingFields.model_fields, "tools"):
        if body.prompt is not None and not changes_nothing([field], getattr(body, field)):
            raise InvalidRequest(f"{field} needs messages", param=field)


def _token_ids(body: TokenizeRequest, tokenizer: Tokenizer, variables: Mapping[str, Any]) -> tuple[int, ...]:
    if body.messages is None:
        return tokenizer.encode(body.prompt or "", "prompt", body.add_special_tokens is not False)
    end = body.prompt_end_of(body.messages)
    return chat_token_ids(body.messages, body.tools, tokenizer, end, bool(body.add_special_tokens), variables)


def _detokenize(body: DetokenizeRequest, model: Model) -> bytes:
    """The JSON of the response body."""
    check_token_ids(body.tokens, model.tokenizer, "tokens", with_index=True)
    return DetokenizeResponse(prompt=model.tokenizer.decode_with_special_tokens(body.tokens)).model_dump_json().encode()
