"""`POST /v1/chat/completions`: continue a conversation."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import ChatRequest, ChatResponse
from serve.routes.respond import SSE, respond
from serve.routes.service import Service
from serve.routes.state import ERRORS
from serve.wire.conversation import prompt_of
from serve.wire.requests import Prompt, chat_terms, room
from serve.wire.structured import shown


def add_chat(routes: APIRouter, service: Service) -> None:
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
        return await respond(service, model, body, terms, [prompt], request)
