"""`POST /v1/completions`: continue texts or token ids."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import CompletionRequest, CompletionResponse
from serve.routes.respond import SSE_RESPONSE, respond
from serve.routes.service import Service
from serve.routes.state import ERROR_RESPONSES
from serve.wire.requests import completion_options, prompt_items, prompts_of


def add_completions(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/completions",
        tags=["chat"],
        summary="Continue a text",
        response_model=CompletionResponse,
        responses=ERROR_RESPONSES | SSE_RESPONSE,
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.check_user(body.user, "user")
        service.check_user(body.safety_identifier, "safety_identifier")
        model = service.model(body.model)
        run = service.run_in_schema_pool if body.forms else service.run_in_text_pool
        options = await run(request, completion_options, body)
        prompt_count = len(prompt_items(body))
        param = "prompt" if prompt_count > 1 else "n" if options.samples == options.n else "best_of"
        service.router.check_job_count(prompt_count * options.samples, model.facts.name, param)
        prompts = await service.run_in_text_pool(request, prompts_of, body, model.tokenizer, model.facts)
        return await respond(service, model, body, options, prompts, request)
