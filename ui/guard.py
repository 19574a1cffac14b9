"""ASGI middleware around the Gradio app: a login, and only those of Gradio's routes, and those bodies, that the page uses.

Gradio also serves files, uploads, proxied addresses, recordings, an API and monitoring. The page needs none of them, so a flaw in one of
them does no harm here. The login is a form of our own: Gradio's asks for a user name, and leaves some of its routes open.
"""

import html
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs

from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.errors import NotFound
from app.neighbours import HOW_TO_ALLOW_HOST, HOW_TO_ALLOW_ORIGIN, Neighbours
from ui.calls import MAX_BYTES, is_plain, read_body
from ui.client import ServerError
from ui.first import with_loading_line
from ui.visitors import IDLE_S, Visitors, cookie_name

Route = Callable[[Request], Awaitable[Response]]
FORM = Path(__file__).with_name("login.html")
ICON = Path(__file__).with_name("icon.svg")
FILES = {  # of our own, open to everybody: they say nothing of what is served
    "/manifest.json": (Path(__file__).with_name("manifest.json"), "application/manifest+json"),
    "/icon.svg": (ICON, "image/svg+xml"),
    "/favicon.ico": (ICON, "image/svg+xml"),
}
MAX_FORM_BYTES = 4096
NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"  # one part of a path, and not ..
USED = re.compile(  # method and path of what the page asks for, seen in a browser
    rf"(GET|HEAD) (/?|/jobs(/content)?|/theme\.css|/robots\.txt|/(assets|static)(/{NAME})+"
    rf"|/gradio_api/(queue/data|startup-events|app_id|heartbeat/{NAME}))"
    r"|POST /(gradio_api/(queue/join|cancel|run/predict|reset)|documents|scores|flags|jobs/(files|batches|tunings|change))"
)
# The page may call its own origin only; Gradio itself needs inline scripts, inline styles and eval.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
FORM_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Content-Security-Policy": CONTENT_SECURITY_POLICY}


class Guard:
    """`neighbours`: the rules for Host and Origin, if they are to be checked here. `routes`: the page's own, by path."""

    def __init__(
        self, app: ASGIApp, visitors: Visitors, neighbours: Neighbours | None = None, routes: Mapping[str, Route] | None = None
    ) -> None:
        self.app = app
        self.visitors = visitors
        self.neighbours = neighbours
        self.routes = routes or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a mounted app gets requests and WebSockets, and the page uses none of these
            await WebSocketClose()(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        response = self._foreign(request) or await self._own(request) or await self._refused(request)
        if response is not None:
            await response(scope, receive, send_with_headers)
        elif (route := self.routes.get(get_route_path(scope))) is not None:
            await (await route(request))(scope, receive, send_with_headers)
        elif request.method == "POST":
            await self._pass_on_call(request, send_with_headers)
        else:
            is_page = get_route_path(scope) in {"", "/"}
            await self.app(scope, receive, with_loading_line(send_with_headers) if is_page else send_with_headers)

    async def _own(self, request: Request) -> Response | None:
        """The answers of the login, and the files that make the page an app."""
        path = get_route_path(request.scope)
        if path in FILES and request.method in {"GET", "HEAD"}:
            file, media_type = FILES[path]
            return FileResponse(file, media_type=media_type, headers={"Cache-Control": "public, max-age=86400"})
        if path == "/login":
            return await self._log_in(request)
        return self._log_out(request) if path == "/logout" else None

    async def _refused(self, request: Request) -> Response | None:
        path = get_route_path(request.scope)
        if not USED.fullmatch(f"{request.method} {path}"):
            return JSONResponse(NotFound("the page has no such route").envelope(), 404)  # as the server says it of its own routes
        if self.visitors.is_logged_in(request) or not await self.visitors.need_login():
            return None
        if path in {"", "/"}:
            return RedirectResponse(f"{_root(request)}/login", 303)
        return _problem(401, "Your login has ended. Reload the page to log in again.")

    async def _pass_on_call(self, request: Request, send: Send) -> None:
        """To Gradio, if the body has nothing but texts."""
        body = await read_body(request, MAX_BYTES)
        if body is None:
            await _problem(413, f"A call of the page has at most {MAX_BYTES:,} bytes.")(request.scope, request.receive, send)
        elif not is_plain(body):
            await _problem(400, "A call of the page has texts and numbers only.")(request.scope, request.receive, send)
        else:
            messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Message:
                return messages.pop() if messages else await request.receive()

            await self.app(request.scope, receive, send)

    def _foreign(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self.neighbours is None:
            return None
        if not self.neighbours.allows_host(host):
            return _problem(421, f"This page is not {host[:100]!r}: {HOW_TO_ALLOW_HOST}.")
        if not self.neighbours.allows_origin(origin, host):
            return _problem(403, f"Pages of {(origin or '')[:100]!r} may not call this one: {HOW_TO_ALLOW_ORIGIN}.")
        return None

    async def _log_in(self, request: Request) -> Response:
        if request.method in {"GET", "HEAD"}:
            return _form()
        if request.method != "POST":
            return _form("A key is sent with POST.", 405)
        key = _key_in(await read_body(request, MAX_FORM_BYTES) or b"")
        if not key:
            return _form("Enter a key.", 400)
        try:
            token = await self.visitors.log_in(key)
        except ServerError as error:
            return _form(error.message, 401)
        response = RedirectResponse(f"{_root(request)}/", 303)
        secure = "https" in {request.url.scheme, request.headers.get("x-forwarded-proto")}
        response.set_cookie(
            cookie_name(request), token, int(IDLE_S), path=_root(request) or "/", secure=secure, httponly=True, samesite="strict"
        )
        return response

    def _log_out(self, request: Request) -> Response:
        self.visitors.log_out(request)
        response = RedirectResponse(f"{_root(request)}/login", 303)
        response.delete_cookie(cookie_name(request), path=_root(request) or "/")
        return response


def _problem(status: int, sentence: str) -> JSONResponse:
    """In the form that Gradio's client shows."""
    return JSONResponse({"detail": sentence}, status)


def _root(request: Request) -> str:
    """The path at which the page is mounted."""
    root: str = request.scope.get("root_path", "")
    return root


def _key_in(form: bytes) -> str:
    return parse_qs(form.decode("utf-8", "replace")).get("key", [""])[0].strip()


def _form(problem: str = "", status: int = 200) -> HTMLResponse:
    alert = f'<p role="alert">{html.escape(problem[:1].upper() + problem[1:])}</p>' if problem else ""
    page = FORM.read_text(encoding="utf-8").replace("<!-- problem -->", alert)
    return HTMLResponse(page, status, {"Content-Security-Policy": FORM_POLICY, "Cache-Control": "no-store"})
