"""Around every HTTP request: its id, its line in the log, its metrics and its trace. Pure ASGI; the outermost middleware.

The line says what happened and how long it took; it never holds a path as sent, a query, a header or a body.
"""

import logging
import time

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.observe.observer import Observer
from serve.observe.record import CLIENT_LEFT, METHODS, RECORD, REQUEST_ID, RequestRecord, current_record, request_id
from serve.wire.errors import is_messages

log = logging.getLogger(__name__)

READY = "/ready"
QUIET = ("/health", "/metrics", "/ui", "/docs", "/openapi.json", "/favicon.ico")  # logged at level debug, as they come all the time
UNNAMED = frozenset({"/openapi.json", "/ui", "/docs"})  # of routes and redirects whose template the router does not note in the scope
DEFAULT_CODES = {
    401: "unauthorized",
    403: "forbidden",
    405: "method_not_allowed",
    408: "timeout",
    413: "body_too_large",
    429: "rate_limited",
}
ANTHROPIC_ID, ANTHROPIC_VERSION = b"request-id", b"anthropic-version"  # the first is X-Request-Id as Anthropic's clients read it
CLIENT_CLOSED = 499  # nginx's status of a request whose client left before the answer began


def observe(app: FastAPI, observer: Observer, access_log: bool) -> None:
    """Add the middleware. Call it after everything else that adds some, so that answers of those are seen, too."""
    app.add_middleware(Observe, observer=observer, access_log=access_log)
    app.user_middleware.append(Middleware(NoteRoute))  # innermost: the router below it notes the route in the scope that it gets


class Observe:
    def __init__(self, app: ASGIApp, observer: Observer, access_log: bool) -> None:
        self.app = app
        self.observer = observer
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        record = RequestRecord(request_id(scope["headers"]), method)
        RECORD.set(record)  # never reset: it ends with the request's task, and what fails after this middleware is logged with its id
        if self.observer.traces is not None:
            record.span = self.observer.traces.start(method, scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *id_headers(record.id, scope)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            record.status, record.code = record.status or 500, "internal_error"
            raise
        finally:
            if record.status == 0 or record.code == CLIENT_LEFT:  # an answer that nobody reads has a status, too
                record.status, record.code = CLIENT_CLOSED, CLIENT_LEFT
            self._finish(record)

    def _finish(self, record: RequestRecord) -> None:
        seconds, metrics = time.monotonic() - record.start_s, self.observer.metrics
        metrics.http_requests.labels(record.method, record.route, str(record.status)).inc()
        metrics.http_duration.labels(record.route).observe(seconds)
        if record.status >= 400 and record.route != READY:  # its 503 is an answer, not a refusal
            record.code = record.code or DEFAULT_CODES.get(record.status, f"http_{record.status}")
            metrics.refused.labels(record.route, str(record.status), record.code).inc()
        if record.span is not None and self.observer.traces is not None:
            self.observer.traces.finish(record)
        if self.access_log:
            quiet = record.route == READY or (record.route.startswith(QUIET) and record.status < 400)
            level = logging.DEBUG if quiet else logging.INFO
            log.log(level, "request", extra={"fields": fields_of(record, seconds)})


def id_headers(id: str, scope: Scope) -> list[tuple[bytes, bytes]]:
    """What tells the client the id of its request, by the names that it may look for."""
    is_anthropic = is_messages(scope["path"]) or any(name == ANTHROPIC_VERSION for name, _ in scope["headers"])
    return [(name, id.encode()) for name in (REQUEST_ID, *([ANTHROPIC_ID] if is_anthropic else []))]


def fields_of(record: RequestRecord, seconds: float) -> dict[str, object]:
    """The line in the log. What does not apply is left out."""
    optional = {
        "model": record.model,
        "prompt_tokens": record.prompt_tokens,
        "generated_tokens": record.generated_tokens,
        "key": record.key,
        "code": record.code,
        "ignored_fields": record.ignored_fields,
    }
    always = {"method": record.method, "route": record.route, "status": record.status, "seconds": round(seconds, 4)}
    return {**always, **{name: value for name, value in optional.items() if value}}


class NoteRoute:
    """Notes the template of the route that served the request: for a mounted application its mount."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            record = current_record()
            if record is not None and scope["type"] == "http":
                mount, route = scope.get("root_path", ""), scope.get("route")
                path = scope["path"].rstrip("/")
                record.route = mount or getattr(route, "path", path if path in UNNAMED else record.route)
