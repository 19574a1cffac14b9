"""Where the ways part: a body that names the model of an upstream goes there, every other one to the route's own handler.

Behind the keys, the limits of clients, the gate and the limit of bodies, which hold for both.
"""

from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.errors import NotReady
from serve.routes.carry import is_carried
from serve.routes.forward import forward
from serve.routes.lenient import Handler, LenientRoute, TellingRoute
from serve.routes.service import Service
from serve.upstream.errors import Foreign
from serve.upstream.gateway import Gateway
from serve.upstream.wires import WIRES
from serve.wire.errors import error_response


def forked(base: type[APIRoute], gateway: Gateway, service: Service) -> type[APIRoute]:
    """The class of routes that look at the model first; their other bodies are handled by `base`."""

    class ForkedRoute(base):  # type: ignore[misc, valid-type]
        def get_route_handler(self) -> Handler:
            handle: Handler = super().get_route_handler()
            wire = WIRES.get(self.path)
            if wire is None or "POST" not in self.methods:
                return handle

            async def handle_here_or_there(request: Request) -> Response:
                body = await json_of(request)
                pool = None if body is None else gateway.pool(body.get("model"))
                if body is None or pool is None:
                    return await handle(request)
                if gateway.draining:
                    raise NotReady("the server is shutting down")
                try:
                    if is_carried(pool, wire.path):
                        return await handle(request)
                    return await forward(service, gateway.upstreams, pool, wire, body, request)
                except Foreign as error:
                    return error_response(error, request.url.path, error.headers)

            return handle_here_or_there

    return ForkedRoute


async def json_of(request: Request) -> dict[str, Any] | None:
    """The body, or None for one that the route's own handler is to refuse."""
    if "json" not in request.headers.get("content-type", "").lower():
        return None
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def route_class(strict: bool, gateway: Gateway | None, service: Service) -> type[APIRoute]:
    base = TellingRoute if strict else LenientRoute
    return base if gateway is None or not gateway.upstreams.pools else forked(base, gateway, service)
