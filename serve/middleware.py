"""What applies to every route: the middleware around all of them, CORS, and errors.

Pure ASGI middleware and FastAPI exception handlers; which form of error a path has is known by `serve.wire.errors`.
"""

import logging
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from app.errors import InvalidRequest, LitmusError, NotFound
from serve.admission.headers import security_headers
from serve.body import RequestBody
from serve.observe.middleware import id_headers
from serve.observe.record import current_id
from serve.wire.errors import ErrorJSON, error_body, error_response
from serve.wire.invalid import invalid_request_of

log = logging.getLogger(__name__)

RATE_HEADERS = tuple(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset"))


DOUBLES = MappingProxyType(  # paths of other servers' clients, each with that of the same route here
    {
        "/chat/completions": "/v1/chat/completions",
        "/completions": "/v1/completions",
        "/embeddings": "/v1/embeddings",
        "/models": "/v1/models",
        "/ping": "/health",
        "/v1/health": "/health",
    }
)


class Doubles:
    """Takes a path for the one that it stands for. Outside of keys and limits, so that for them, the log and the metrics there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"].rstrip("/")
            own = f"/v1{path}" if path.startswith("/models/") else DOUBLES.get(path)
            scope = scope if own is None else {**scope, "path": own}
        await self.app(scope, receive, send)


class Paths:
    """Takes a path with a slash at its end for the one without, and HEAD for GET. Leaves the page and /docs alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or path.startswith(("/ui", "/docs")):
            await self.app(scope, receive, send)
            return
        scope = {**scope, "path": path.rstrip("/") or "/"}
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: ASGIMessage) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


def install(
    app: FastAPI,
    max_body_bytes: int,
    origins: Sequence[str] = (),
    strict: bool = False,
    body_timeout_s: float = 30,
    before_body: Sequence[Middleware] = (),
) -> None:
    """Add the limits of bodies, the error handlers, and CORS: web pages from `origins` may call the API and read its errors.

    `strict` says whether the routes refuse unknown fields of a body, for the OpenAPI document. `before_body` is middleware that decides
    about a request before its body is read, in the order in which it decides.
    """
    app.add_middleware(RequestBody, limit=max_body_bytes, timeout_s=body_timeout_s)
    app.add_middleware(Paths)
    app.user_middleware[:0] = [Middleware(Doubles), *before_body]
    if origins:  # added last, so it runs first and also covers the 413 of the body limit
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # clients add headers of their own; the list of origins is what protects
            expose_headers=["Retry-After", "X-Litmus-Ignored", "X-Request-Id", "Request-Id", *RATE_HEADERS],
        )

    describe: Callable[[], dict[str, Any]] = app.openapi
    app.openapi = lambda: _corrected(describe(), strict)  # type: ignore[method-assign]

    @app.exception_handler(LitmusError)
    async def _litmus(request: Request, error: LitmusError) -> JSONResponse:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        content_type = request.headers.get("content-type", "")
        if all(item["loc"] == ("body",) for item in error.errors()) and "json" not in content_type.lower():
            actual = f"'{content_type[:80]}'" if content_type else "missing"
            message = f"the header Content-Type is {actual}; it must be application/json"
            return error_response(InvalidRequest(message, code="invalid_content_type"), request.url.path)
        return error_response(invalid_request_of(error, request.url.path), request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            not_found = NotFound(f"{request.method} {request.url.path} is not a route of this server; /docs lists the routes")
            return error_response(not_found, request.url.path)
        invalid = InvalidRequest(_http_message(request, error), code="bad_request")
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        return ErrorJSON(error_body(invalid, request.url.path, current_id()), error.status_code, headers)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s in a request", type(error).__name__, exc_info=error)
        response = error_response(LitmusError("the server failed on this request; its log says why"), request.url.path)
        response.headers.update(security_headers(request.url.path))  # no middleware sees this answer
        response.headers["Connection"] = "close"  # makes uvicorn close the connection
        if (id := current_id()) is not None:  # this answer does not pass the middleware that adds it
            response.headers.update({name.decode(): value.decode() for name, value in id_headers(id, request.scope)})
        return response


def _corrected(document: dict[str, Any], strict: bool) -> dict[str, Any]:
    """Remove the 422 that FastAPI documents for every route, as an invalid body is a 400 here, and what forbids unknown fields."""
    schemas = [*document["components"]["schemas"].values()]
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            schemas += [each["schema"] for each in operation.get("requestBody", {}).get("content", {}).values()]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for schema in schemas if not strict else ():
        if schema.get("additionalProperties") is False:
            del schema["additionalProperties"]
    return document


def _allowed(request: Request) -> str:
    """The methods of all routes of a path; the router names those of the first one."""
    routes = [context for context in iter_route_contexts(request.app.routes) if isinstance(context.original_route, Route)]
    found = [route for route in routes if route.original_route.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for route in found for method in route.methods or ()}))


def _http_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 405:
        return f"{request.url.path} does not support the method {request.method}"
    if error.status_code == 400:
        return "the body could not be read: it must be JSON in UTF-8, nested less than 1,000 deep, no number over 4,300 digits"
    return str(error.detail)
