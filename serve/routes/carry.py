"""/v1/responses and /v1/messages over the chat of an upstream that has no such routes: the body becomes a chat, its chunks the answer."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

from fastapi import Request
from fastapi.responses import Response

from app.errors import UpstreamFailed
from app.schemas import ChatRequest, MessagesRequest, ResponsesRequest
from serve.routes.forward import errand_of, headers_of, under_way
from serve.routes.service import EventStream, Service, cancel_on_disconnect
from serve.upstream.errand import Errand, Order
from serve.upstream.gateway import Gateway
from serve.upstream.opening import words_of
from serve.upstream.pool import Pool
from serve.upstream.remote import RemoteAnswer
from serve.upstream.wires import CHAT, MESSAGES, RESPONSES, WIRES
from serve.wire.answers import Answer, collect
from serve.wire.blocks import messages_body, messages_stream
from serve.wire.messages import chat_request
from serve.wire.reply import Reply, stream
from serve.wire.reply import collect as collect_reply
from serve.wire.requests import used_tier
from serve.wire.responses import chat_of, conversation_of, names_of_the_body

OURS = frozenset({"model", "timeout_s", "stream", "stream_options", "user", "safety_identifier", "metadata", "service_tier"})
DATA = b"data: "
Chunks = AsyncIterator[Any]


def is_carried(pool: Pool, path: str) -> bool:
    """Whether the upstreams of the model have a chat only."""
    routes = [upstream.abilities.routes for upstream in pool.alive if upstream.abilities is not None]
    return path in {RESPONSES, MESSAGES} and any(CHAT in each for each in routes) and not any(path in each for each in routes)


def pool_of(service: Service, model: str | None) -> Pool | None:
    """The upstreams of the model; None if it is loaded here."""
    return service.router.pool(model) if isinstance(service.router, Gateway) else None


async def carry_response(service: Service, pool: Pool, body: ResponsesRequest, request: Request, timeout_s: float | None) -> Response:
    conversation = conversation_of(body)
    with names_of_the_body(conversation):
        chat = chat_of(body, conversation)
    errand = _errand(service, pool, chat, request, timeout_s)
    sampling = SimpleNamespace(
        temperature=1.0 if body.temperature is None else body.temperature, top_p=1.0 if body.top_p is None else body.top_p
    )
    answer = RemoteAnswer(_renamed(errand, "resp"), pool.name, used_tier(body.service_tier))
    reply = Reply(body, cast(Answer, answer), [cast(Any, SimpleNamespace(sampling=sampling))])
    if body.stream:
        return await _stream(service, errand, chat, lambda chunks: stream(reply, chunks), request)
    await _run(service, errand, chat, lambda chunks: collect_reply(reply, chunks), request)
    return Response(reply.body().model_dump_json(by_alias=True), media_type="application/json")


async def carry_message(service: Service, pool: Pool, body: MessagesRequest, request: Request, timeout_s: float | None) -> Response:
    chat, translation = chat_request(body)
    errand = _errand(service, pool, chat, request, timeout_s)
    answer = cast(Answer, RemoteAnswer(_renamed(errand, "msg"), pool.name))
    if body.stream:
        return await _stream(service, errand, chat, lambda chunks: messages_stream(answer, chunks), request)
    await _run(service, errand, chat, lambda chunks: collect(answer, chunks), request)
    return Response(messages_body(answer).model_dump_json(), media_type="application/json")


def _errand(service: Service, pool: Pool, chat: ChatRequest, request: Request, timeout_s: float | None) -> Errand:
    """Always a stream, as its chunks say more than a whole answer."""
    body = chat.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=set(OURS))
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    order = Order(WIRES[CHAT], sent, headers_of(request), stream=True, hide_usage=False)
    return errand_of(cast(Gateway, service.router).upstreams, pool, order, timeout_s)


def _renamed(errand: Errand, prefix: str) -> str:
    return f"{prefix}_{errand.naming.id.rpartition('-')[2]}"


async def _stream(
    service: Service, errand: Errand, chat: ChatRequest, lines: Callable[[Chunks], AsyncIterator[str]], request: Request
) -> Response:
    async with AsyncExitStack() as stack:
        words = words_of(chat.model_dump(include={"messages"}))
        await stack.enter_async_context(under_way(cast(Gateway, service.router).upstreams, errand, words))
        if errand.pool.has_room(errand.place):
            await cancel_on_disconnect(request, errand.begin())
        return EventStream(lines(chunks_of(errand)), stack.pop_all())


async def _run(service: Service, errand: Errand, chat: ChatRequest, collected: Callable[[Chunks], Any], request: Request) -> None:
    async def run() -> None:
        words = words_of(chat.model_dump(include={"messages"}))
        async with under_way(cast(Gateway, service.router).upstreams, errand, words):
            await errand.begin()
            await collected(chunks_of(errand))

    await cancel_on_disconnect(request, run())


async def chunks_of(errand: Errand) -> Chunks:
    """The chunks of the chat. The last one with a choice waits for the token counts, which come after it. Raises `UpstreamFailed`."""
    held: dict[str, Any] | None = None
    async for line in errand.lines():
        if not line.startswith(DATA) or line.startswith(b"data: [DONE]"):
            continue
        chunk = json.loads(line.removeprefix(DATA))
        if "error" in chunk:
            raise UpstreamFailed(chunk["error"]["message"], code=chunk["error"]["code"])
        if held is not None:
            held["usage"] = chunk.get("usage")
        elif any(choice.get("finish_reason") for choice in chunk.get("choices") or ()):
            held = chunk
        else:
            yield chunk
    if held is not None:
        yield held
