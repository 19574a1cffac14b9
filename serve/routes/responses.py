"""`POST /v1/responses`: continue a conversation in the form of OpenAI's Responses API. Nothing is stored."""

import uuid

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import ResponsesAnswer, ResponsesRequest
from serve.routes.carry import carry_response, pool_of
from serve.routes.chat import prepare
from serve.routes.lenient import note_left_out
from serve.routes.respond import SSE_RESPONSE, run_jobs, send_stream
from serve.routes.service import Model, Service, timeout_of
from serve.routes.state import ERROR_RESPONSES
from serve.wire.answers import Answer
from serve.wire.reply import Reply, collect, stream
from serve.wire.requests import make_jobs
from serve.wire.responses import chat_of, conversation_of, names_of_the_body


def add_responses(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/responses",
        tags=["chat"],
        summary="Continue a conversation, in the form of the Responses API",
        response_model=ResponsesAnswer,
        responses=ERROR_RESPONSES | SSE_RESPONSE,
    )
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        service.check_user(body.user, "user")
        service.check_user(body.safety_identifier, "safety_identifier")
        timeout_s = timeout_of(request, body.timeout_s)
        if (pool := pool_of(service, body.model)) is not None:
            return await carry_response(service, pool, body, request, timeout_s)
        model = service.model(body.model)
        reply = await _reply(service, model, body, request)
        if body.stream:
            return await send_stream(service, model.fleet, reply.jobs, lambda events: stream(reply, events), timeout_s)
        await run_jobs(service, model.fleet, reply.jobs, lambda events: collect(reply, events), request, timeout_s)
        content = await service.run_in_text_pool(request, lambda: reply.body().model_dump_json(by_alias=True).encode())
        return Response(content, media_type="application/json")


async def _reply(service: Service, model: Model, body: ResponsesRequest, request: Request) -> Reply:
    conversation = conversation_of(body)
    with names_of_the_body(conversation):
        chat = chat_of(body, conversation)
        prompt, options = await prepare(service, model, chat, request)
        note_left_out(request, map(conversation.keyword, options.structured.left_out))
        id = f"resp_{uuid.uuid4().hex}"
        jobs = await service.run_in_text_pool(request, make_jobs, id, chat, options, [prompt], model.tokenizer, model.facts)
    return Reply(body, Answer(id, model.facts, options, [prompt], [job.id for job in jobs], model.tokenizer), jobs)
