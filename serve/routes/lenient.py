"""Leaves out of a request what this server does not know or its model has no use for, and says so, instead of refusing it: real clients
send fields of many servers.

A field that is known, would change the answer and cannot be done is refused all the same; so is every unknown one with `server.strict`.
Says as well what a route has left out of the schemas of tools, as `note_left_out` tells.
"""

import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from app.schemas.wire import MAX_MISTAKES, few_mistakes
from serve.body import replay
from serve.observe.record import note_ignored
from serve.wire.ignored import collected_in
from serve.wire.unsupported import changes_nothing, is_refused

HEADER = "X-Litmus-Ignored"
MAX_ROUNDS = 8  # of validation: what was left out may have hidden further unknown fields
MAX_NAMED = 32  # fields in the header
MAX_NAME_CHARS = 160
MAX_HEADER_CHARS = 2000

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def note_left_out(request: Request, names: Iterable[str]) -> None:
    """The response will name these parts of the body."""
    request.state.left_out = [*names]


class TellingRoute(APIRoute):
    """A route that names what it has left out of a body."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_and_tell(request: Request) -> Response:
            with few_mistakes():
                response = await handle(request)
            _tell(response, _left_out(request))
            return response

        return handle_and_tell


class LenientRoute(APIRoute):
    """The same, and its bodies may have unknown fields."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_leniently(request: Request) -> Response:
            ignored: list[str] = []
            for _ in range(MAX_ROUNDS):
                without_use: list[str] = []
                try:
                    with collected_in(without_use), few_mistakes():
                        response = await handle(request)
                except RequestValidationError as error:
                    if len(error.errors()) >= MAX_MISTAKES:
                        raise
                    body, removed = error.body, _remove_unknown(error.body, error.errors())
                    if not removed:
                        raise
                    ignored += [name for name, has_effect in removed.items() if has_effect]
                    request = Request(request.scope, replay(json.dumps(body).encode(), request.receive))
                    continue
                _tell(response, [*ignored, *dict.fromkeys(without_use), *_left_out(request)])
                return response
            with few_mistakes():
                return await handle(request)

        return handle_leniently


def _remove_unknown(body: Any, errors: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Remove the fields that pydantic found too many, except those that are known and would have an effect.

    Returns their paths, and whether leaving one out is worth mentioning: not where the value says what is so anyway.
    """
    removed: dict[str, bool] = {}
    for error in errors:
        found = _locate(body, error["loc"][1:]) if error["type"] == "extra_forbidden" else None
        if found is None:
            continue
        container, path = found
        neutral = changes_nothing(path, container[path[-1]])
        if neutral or not is_refused(path):
            del container[path[-1]]
            removed[".".join(map(str, path))] = not neutral
    return removed


def _locate(body: Any, location: Sequence[Any]) -> tuple[dict[str, Any], list[Any]] | None:
    """The object that has the field at pydantic's `location`, and the path to the field without the names of union members."""
    node, path, container = body, [], None
    for part in location:
        inside = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside:
            container, node = node, node[part]
            path.append(part)
    return (container, path) if path and path[-1] == location[-1] and isinstance(container, dict) else None


def _left_out(request: Request) -> list[str]:
    return getattr(request.state, "left_out", [])


def _tell(response: Response, names: Sequence[str]) -> None:
    if names:
        response.headers[HEADER] = header_of(names)
        note_ignored(len(names))


def header_of(names: Sequence[str]) -> str:
    """Names as one line of ASCII."""
    different = [*dict.fromkeys(names)]
    line = ", ".join(quote(name[:MAX_NAME_CHARS], safe="._-[]$", errors="backslashreplace") for name in different[:MAX_NAMED])
    if len(line) > MAX_HEADER_CHARS:
        return line[:MAX_HEADER_CHARS].rpartition(", ")[0] + ", ..."
    return line if len(different) <= MAX_NAMED else line + ", ..."
