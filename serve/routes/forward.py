"""From a body for a model of an upstream to the answer: what holds for every model here is checked, then an errand takes it there.

Fields are passed on as they are. Those of this server are taken out: `timeout_s`, and the model's name.
"""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from app.errors import InvalidRequest
from app.schemas import MAX_TIMEOUT_S
from serve.admission.bans import TOKENS
from serve.observe.record import REQUEST_ID, current_record
from serve.routes.service import EventStream, Service, cancel_on_disconnect, timeout_of
from serve.upstream.answer import Naming
from serve.upstream.errand import Errand, Order
from serve.upstream.meter import Meter
from serve.upstream.models import Upstreams
from serve.upstream.opening import words_of
from serve.upstream.pool import Pool
from serve.upstream.refusal import cannot
from serve.upstream.wires import CHAT, TEXT, Wire

PASSED_HEADERS = ("anthropic-version", "anthropic-beta")  # of our client; a key of ours is never passed on
USERS = ("user", "safety_identifier")


async def forward(service: Service, upstreams: Upstreams, pool: Pool, wire: Wire, body: dict[str, Any], request: Request) -> Response:
    """Raises what the pool and the upstream refuse, before the first byte of the answer."""
    check_users(service, body)
    check_tokens(service, body)
    timeout_s = timeout_of(request, _timeout(body))
    errand = errand_of(upstreams, pool, order_of(wire, body, request), timeout_s)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(under_way(upstreams, errand, words_of(body) if wire.kind == "generate" else ()))
        if not errand.order.stream:
            content = await cancel_on_disconnect(request, errand.whole())
            return Response(content, media_type="application/json", headers=errand.headers)
        if pool.has_room(errand.place):
            await cancel_on_disconnect(request, errand.begin())
        response = EventStream(errand.lines(), stack.pop_all())
        response.headers.update(errand.headers)
        return response


def errand_of(upstreams: Upstreams, pool: Pool, order: Order, timeout_s: float | None) -> Errand:
    prefix, separator = order.wire.prefix, "_" if order.wire.inner else "-"
    naming = Naming(f"{prefix}{separator}{uuid.uuid4().hex}" if prefix else "", pool.name)
    meter = Meter(upstreams.observer, pool.name, order.wire, upstreams.requests)
    return Errand(pool, order, naming, meter, upstreams.queue_settings.timeout_s if timeout_s is None else timeout_s)


@asynccontextmanager
async def under_way(upstreams: Upstreams, errand: Errand, words: Sequence[int]) -> AsyncIterator[None]:
    """Give the errand its place while the context is open. Leaving it closes the request to the upstream."""
    refusal = partial(cannot, path=errand.order.wire.path, body=errand.order.body)
    async with errand.pool.enter(words, refusal) as errand.place:
        with upstreams.under_way(errand):
            try:
                yield
            finally:
                await errand.close()


def check_users(service: Service, body: Mapping[str, Any]) -> None:
    """Raises `Forbidden` for a user who is banned here."""
    metadata = body.get("metadata")
    named = {name: body.get(name) for name in USERS}
    if isinstance(metadata, dict):
        named["metadata.user_id"] = metadata.get("user_id")
    for param, user in named.items():
        if isinstance(user, str):
            service.check_user(user, param)


def check_tokens(service: Service, body: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for token ids where content is blocked: only the upstream knows which text they are."""
    if not getattr(service.banned_users, "block_content", False):
        return
    for name in TOKENS:
        sent = body.get(name)
        first = sent[0] if isinstance(sent, list) and sent else None
        if isinstance(first, int | float | list):
            message = f"{name}: token ids of a model that an upstream answers for cannot be searched for blocked content; send text"
            raise InvalidRequest(message, param=name)


def _timeout(body: Mapping[str, Any]) -> float | None:
    timeout_s = body.get("timeout_s")
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest(f"timeout_s must be a number of seconds above 0 and up to {MAX_TIMEOUT_S}", param="timeout_s")
    return timeout_s


def order_of(wire: Wire, body: Mapping[str, Any], request: Request) -> Order:
    """Raises `InvalidRequest` for a body that no server would take."""
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream must be true or false", param="stream")
    sent = {name: value for name, value in body.items() if name != "timeout_s"}
    headers = headers_of(request)
    if not (stream and wire.streams):
        return Order(wire, sent, headers, False, False)
    options = body.get("stream_options") or {}
    asked = not isinstance(options, dict) or bool(options.get("include_usage"))
    if asked or wire.path not in {CHAT, TEXT}:
        return Order(wire, sent, headers, True, False)
    return Order(wire, {**sent, "stream_options": {**options, "include_usage": True}}, headers, True, True)


def headers_of(request: Request) -> dict[str, str]:
    """What goes there beside the upstream's own key."""
    record = current_record()
    passed = {name: request.headers[name] for name in PASSED_HEADERS if name in request.headers}
    return {"Content-Type": "application/json", **passed, **({REQUEST_ID.decode(): record.id} if record is not None else {})}
