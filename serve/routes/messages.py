"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: a chat in the form of Anthropic's Messages API."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.schemas import CountTokensRequest, CountTokensResponse, MessagesErrorResponse, MessagesRequest, MessagesResponse
from serve.routes.chat import prompt_and_options, prompt_of
from serve.routes.respond import SSE_RESPONSE, Asked, Form, respond_in
from serve.routes.service import Service
from serve.routes.state import ERROR_RESPONSES
from serve.wire.blocks import messages_body, messages_stream
from serve.wire.messages import chat_request

ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {**response, "model": MessagesErrorResponse} for status, response in ERROR_RESPONSES.items()},
    400: {"model": MessagesErrorResponse, "description": "a field is wrong; the message names it"},
}
COUNT_ERRORS = {status: response for status, response in ERRORS.items() if status not in {403, 429}}
MESSAGES_FORM = Form("msg_", messages_body, messages_stream)


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
        model = service.model(body.model)
        chat, translation = chat_request(body)
        with translation.own_names():
            prompt, options = await prompt_and_options(service, model, chat, request)
            return await respond_in(MESSAGES_FORM, Asked(model, chat, options, [prompt]), service, request)

    @routes.post(
        "/v1/messages/count_tokens", tags=["tokens"], summary="Count the tokens of a prompt, in Anthropic's form", responses=COUNT_ERRORS
    )
    async def count_tokens(body: CountTokensRequest, request: Request) -> CountTokensResponse:
        model = service.model(body.model)
        chat, translation = chat_request(body)
        with translation.own_names():
            prompt = await prompt_of(service, model, chat, request)
        return CountTokensResponse(input_tokens=len(prompt.ids))
