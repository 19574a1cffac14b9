"""`POST /v1/chat/completions`: continue a conversation."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import ChatRequest, ChatResponse
from app.tokenizer import Tokenizer
from serve.routes.lenient import note_left_out
from serve.routes.respond import SSE_RESPONSE, respond
from serve.routes.service import Model, Service
from serve.routes.state import ERROR_RESPONSES
from serve.wire.conversation import chat_text, template_variables
from serve.wire.requests import AnswerOptions, Prompt, chat_options, max_new_tokens
from serve.wire.structured import visible_tools


def add_chat(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/chat/completions",
        tags=["chat"],
        summary="Continue a conversation",
        response_model=ChatResponse,
        responses=ERROR_RESPONSES | SSE_RESPONSE,
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        service.check_user(body.user, "user")
        service.check_user(body.safety_identifier, "safety_identifier")
        model = service.model(body.model)
        prompt, options = await prepare(service, model, body, request)
        note_left_out(request, options.structured.left_out)
        return await respond(service, model, body, options, [prompt], request)


async def prepare(service: Service, model: Model, body: ChatRequest, request: Request) -> tuple[Prompt, AnswerOptions]:
    """Raises `InvalidRequest`, naming the field, for what the model cannot do."""
    prompt = await prompt_of(service, model, body, request)
    max_new_tokens(prompt.ids, None, model.facts, "messages")  # refuse a prompt that is too long before its schemas are checked
    run = service.run_in_schema_pool if body.tools or body.forms else service.run_in_text_pool
    return prompt, await run(request, chat_options, body, model.tokenizer, prompt.text)


async def prompt_of(service: Service, model: Model, body: ChatRequest, request: Request) -> Prompt:
    variables = template_variables(body, model.tokenizer)
    return await service.run_in_text_pool(request, _rendered, body, model.tokenizer, variables)


def _rendered(body: ChatRequest, tokenizer: Tokenizer, variables: Mapping[str, Any]) -> Prompt:
    text = chat_text(body.messages, visible_tools(body), tokenizer, body.prompt_end, variables)
    return Prompt(tokenizer.encode_rendered(text, bool(body.add_special_tokens)), text)
