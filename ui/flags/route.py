"""`POST flags`: keeps what a visitor says about a verdict or an answer, where the owner asked for it (`ui.flags`)."""

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ui.calls import MAX_BYTES, read_body
from ui.flags.file import FlagFile, NotKept
from ui.flags.flag import Flag

OFF = "This server keeps no such notes. Its owner can turn them on with the setting ui.flags."


def flags_route(file: FlagFile | None) -> Callable[[Request], Awaitable[Response]]:
    async def flags(request: Request) -> Response:
        if file is None:
            return JSONResponse({"detail": OFF}, 404)
        body = await read_body(request, MAX_BYTES)
        try:
            flag = Flag.model_validate_json(body or b"")
        except ValidationError as error:
            return JSONResponse({"detail": _sentence(error)}, 400)
        try:
            await asyncio.to_thread(file.add, flag)  # it waits for other writers
        except NotKept as error:
            return JSONResponse({"detail": error.message}, 507)
        return JSONResponse({"kept": True, "text": flag.text is not None})

    return flags


def _sentence(error: ValidationError) -> str:
    """The first problem, without the value that was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    problem = first["msg"].removeprefix("Value error, ")
    return f"{where}: {problem}." if where else f"{problem[:1].upper()}{problem[1:]}."
