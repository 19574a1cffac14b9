"""`POST /v1/completions`: continue texts or token ids."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import CompletionRequest, CompletionResponse
from serve.routes.respond import SSE, respond
from serve.routes.service import Service
from serve.routes.state import ERRORS
from serve.wire.requests import completion_terms, given_prompts, prompts_of


def add_completions(routes: APIRouter, service: Service) -> None:
    @routes.post("/v1/completions", tags=["chat"], summary="Continue a text", response_model=CompletionResponse, responses=ERRORS | SSE)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.check_user(body.user)
        model = service.model(body.model)
        terms = completion_terms(body)
        service.router.check(len(given_prompts(body)) * terms.copies, model.facts.name)
        prompts = await service.work(request, prompts_of, body, model.tokenizer, model.facts)
        return await respond(service, model, body, terms, prompts, request)
