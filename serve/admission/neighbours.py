"""ASGI middleware that refuses the pages of other sites, and host names that are not this server's. The rules are in `app.neighbours`."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.errors import Forbidden, LitmusError, Misdirected, NotFound
from app.neighbours import HOW_TO_ALLOW_HOST, HOW_TO_ALLOW_ORIGIN, Neighbours
from serve.wire.errors import error_response


class Browsers:
    """Answers 421 to a foreign Host, if `check_host`, and 403 to a foreign Origin: on all paths, or with `page_only` on those of the page.

    Where there are keys, the API is safe from other sites' pages, which have none. But the page has a cookie, which browsers also send for
    pages at other ports of the same host.
    """

    def __init__(self, app: ASGIApp, neighbours: Neighbours, check_host: bool, page_only: bool) -> None:
        self.app = app
        self.neighbours = neighbours
        self.check_host = check_host
        self.page_only = page_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no route of this server speaks it
            await WebSocketClose()(scope, receive, send)
            return
        if scope["type"] == "http":
            try:
                if not scope["path"].isprintable():  # a route's pattern may match "/slots\n", which no rule for "/slots" knows
                    raise NotFound("no path of this server has control characters")
                self._check(Headers(scope=scope), scope["path"])
            except LitmusError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.check_host and not self.neighbours.allows_host(host):
            raise Misdirected(f"this server is not {host[:100]!r}: {HOW_TO_ALLOW_HOST}")
        if self.page_only and not (path == "/ui" or path.startswith("/ui/")):
            return
        if not self.neighbours.allows_origin(origin, host):
            raise Forbidden(f"pages of {(origin or '')[:100]!r} may not call this server: {HOW_TO_ALLOW_ORIGIN}", code="foreign_origin")
