"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: a chat in the form of Anthropic's Messages API."""

import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import CountTokensRequest, CountTokensResponse, MessagesErrorResponse, MessagesRequest, MessagesResponse
from app.schemas.thought import UNLIMITED
from serve.routes.carry import carry_message, pool_of
from serve.routes.chat import prepare, prompt_of
from serve.routes.lenient import note_left_out
from serve.routes.respond import SSE_RESPONSE, run_jobs, send_stream
from serve.routes.service import Service, timeout_of
from serve.routes.state import ERROR_RESPONSES
from serve.wire.answers import Answer, collect
from serve.wire.blocks import messages_body, messages_stream
from serve.wire.messages import chat_request
from serve.wire.requests import make_jobs

ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {**response, "model": MessagesErrorResponse} for status, response in ERROR_RESPONSES.items()},
    400: {"model": MessagesErrorResponse, "description": "a field is wrong; the message names it"},
}
COUNT_ERRORS = {status: response for status, response in ERRORS.items() if status not in {403, 408, 429}}


def add_messages(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/messages",
        tags=["chat"],
        summary="Continue a conversation, in Anthropic's form",
        response_model=MessagesResponse,
        responses=ERRORS | SSE_RESPONSE,
    )
    async def messages(body: MessagesRequest, request: Request) -> Response:
        service.check_user(body.metadata.user_id if body.metadata else None, "metadata.user_id")
        timeout_s = timeout_of(request)
        if (pool := pool_of(service, body.model)) is not None:
            return await carry_message(service, pool, body, request, timeout_s)
        model = service.model(body.model)
        chat, translation = chat_request(body, model.tokenizer.chat)
        with translation.own_names():
            prompt, options = await prepare(service, model, chat, request)
            note_left_out(request, map(translation.keyword, options.structured.left_out))
            id = f"msg_{uuid.uuid4().hex}"
            is_more = len(prompt.ids) + body.max_tokens > model.facts.context  # than the context leaves, where an answer ends, too
            chat = chat.model_copy(update={"max_tokens": UNLIMITED if is_more else body.max_tokens})
            jobs = await service.run_in_text_pool(request, make_jobs, id, chat, options, [prompt], model.tokenizer, model.facts)
        answer = Answer(id, model.facts, options, [prompt], [job.id for job in jobs], model.tokenizer)
        if body.stream:
            return await send_stream(service, model.fleet, jobs, lambda events: messages_stream(answer, events), timeout_s)
        await run_jobs(service, model.fleet, jobs, lambda events: collect(answer, events), request, timeout_s)
        content = await service.run_in_text_pool(request, lambda: messages_body(answer).model_dump_json().encode())
        return Response(content, media_type="application/json")

    @routes.post(
        "/v1/messages/count_tokens", tags=["tokens"], summary="Count the tokens of a prompt, in Anthropic's form", responses=COUNT_ERRORS
    )
    async def count_tokens(body: CountTokensRequest, request: Request) -> CountTokensResponse:
        model = service.model(body.model)
        chat, translation = chat_request(body, model.tokenizer.chat)
        with translation.own_names():
            prompt = await prompt_of(service, model, chat, request)
        return CountTokensResponse(input_tokens=len(prompt.ids))
