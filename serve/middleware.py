"""What stands before and behind every route: the bound on a body's size, and errors in OpenAI's envelope.

Pure ASGI and FastAPI handlers; knows no route.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLarge, InvalidRequest, LitmusError, NotFound

log = logging.getLogger(__name__)

PATIENCE = 16  # a body up to this many times the limit is read to its end, so that its sender gets to see the answer
UNSUPPORTED = frozenset(
    "audio chat_template chat_template_kwargs continue_final_message function_call functions length_penalty metadata mm_processor_kwargs "
    "modalities moderation no_repeat_ngram_size num_return_sequences parallel_tool_calls prediction prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier store suffix tool_choice tools "
    "user verbosity web_search_options".split()
)


class BodyLimit:
    """Reads the whole body before the application sees it, and answers 413 itself when it is larger than `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"}:
            await self.app(scope, receive, send)
            return
        parts, size, more = [], 0, True
        while more and size <= self.limit * PATIENCE:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self.limit:
                parts.append(part)
        if size > self.limit:
            error = BodyTooLarge(f"the body is larger than {self.limit} bytes (server.max_body_bytes); send less at a time")
            await answer(error)(scope, receive, send)
            return
        await self.app(scope, _replay(b"".join(parts), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


class ErrorJSON(JSONResponse):
    """In ASCII: a message may quote half a surrogate pair, which UTF-8 cannot hold."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def answer(error: LitmusError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in {429, 503} else None
    return ErrorJSON(error.envelope(), error.status, headers)


def invalid(error: RequestValidationError) -> InvalidRequest:
    """One complaint of pydantic as a sentence that names the field. Where a field may have several types, each of them complains:
    the one whose type fits, and that came farthest, knows best what is wrong.
    """
    found = error.errors()
    fitting = [one for one in found if not one["type"].endswith("_type")]
    first = max(fitting or found[:1], key=lambda one: len(one["loc"]))
    loc, extra = first["loc"][1:], first["type"] == "extra_forbidden"
    path = [str(part) for place, part in enumerate(loc) if (extra and place == len(loc) - 1) or not _tag(str(part))]
    param = ".".join(path) or None
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json")
    if extra or first["type"] == "none_required":
        known = not extra or path[-1] in UNSUPPORTED
        sentence = f"parameter '{param}' is not supported by this server" if known else f"unknown parameter '{param or ''}'"
        return InvalidRequest(sentence, param=param, code="unsupported_parameter" if known else "unknown_parameter")
    if first["type"] == "missing":
        return InvalidRequest(f"'{param}' is missing" if param else "the body is missing", param=param, code="missing_parameter")
    if param is None and first["type"] == "value_error":
        return InvalidRequest(first["msg"].removeprefix("Value error, "))
    if param is None:
        return InvalidRequest(f"the body must be a JSON object: {first['msg']}", code="invalid_type")
    return InvalidRequest(f"'{param}': {first['msg'].removeprefix('Value error, ')}", param=param)


def _tag(part: str) -> bool:
    """Whether a part of pydantic's path names a member of a union (`str`, `list[TextPart]`) and no field."""
    return part in {"str", "int", "NamedTool"} or not part.replace("_", "").isalnum()


def install(app: FastAPI, max_body_bytes: int, origins: Sequence[str] = ()) -> None:
    """Pages of `origins` may call the app from a browser, and read its refusals, too."""
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    if origins:  # added last: it stands before everything else
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients send headers of their own; the list of origins is the guard
            expose_headers=["Retry-After"],
        )

    describe: Callable[[], dict[str, Any]] = app.openapi
    app.openapi = lambda: _without_422(describe())  # type: ignore[method-assign]

    @app.exception_handler(LitmusError)
    async def _litmus(_: Request, error: LitmusError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        named = request.headers.get("content-type", "")
        if all(one["loc"] == ("body",) for one in error.errors()) and "json" not in named.lower():
            wrong = f"'{named[:80]}'" if named else "missing"
            return answer(InvalidRequest(f"the header Content-Type is {wrong}; it must be application/json", code="invalid_content_type"))
        return answer(invalid(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return answer(NotFound(f"{request.method} {request.url.path} is not a route of this server; /docs lists them"))
        wrong = InvalidRequest(_sentence(request, error), code="bad_request")
        return ErrorJSON(wrong.envelope(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        response = answer(LitmusError("the server failed on this request; its log says why"))
        response.headers["Connection"] = "close"  # which the server then does
        return response


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI writes it into every route's answers; here a wrong body is a 400."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _sentence(request: Request, error: HTTPException) -> str:
    if error.status_code == 405:
        return f"{request.method} is not a method of {request.url.path}"
    if error.status_code == 400:
        return (
            "the body could not be read: it must be JSON in UTF-8, not compressed, nested less than 1,000 deep, no number over 4,300 digits"
        )
    return str(error.detail)
