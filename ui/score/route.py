"""`POST scores`: up to 16 texts, scored by the server with the visitor's key, as rows of the page's table. Keeps nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.schemas import Method, ScoreResponse
from ui import loading
from ui.calls import MAX_BYTES, read_body
from ui.client import Client, ServerError, precision_of
from ui.score.row import row_of
from ui.visitors import Visitors

MAX_TEXTS = 16  # of one call: the table fills as the calls come back, and a cancelled run stops between them
T = TypeVar("T")


class Texts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    method: Method | None = None
    model: str | None = Field(None, max_length=200)


def scores_route(visitors: Visitors) -> Callable[[Request], Awaitable[Response]]:
    async def scores(request: Request) -> Response:
        body = await read_body(request, MAX_BYTES)
        if body is None:
            return JSONResponse({"detail": f"The texts of one call may have {MAX_BYTES:,} bytes. Send fewer or shorter ones."}, 413)
        try:
            asked = Texts.model_validate_json(body)
        except ValidationError:
            return JSONResponse({"detail": f"A call has 1 to {MAX_TEXTS} texts, and may name a method and a model."}, 400)
        try:
            found = await until_left(request, _scored(visitors.client(request), asked))
        except ServerError as error:
            return JSONResponse({"detail": error.message}, 502)
        return JSONResponse({"rows": rows_of(found, asked.texts)} if found else {"detail": "The page has left."})

    return scores


def _scored(client: Client, asked: Texts) -> Coroutine[Any, Any, ScoreResponse]:
    return loading.ask(client, lambda: client.scores(asked.texts, asked.method, asked.model))


def rows_of(response: ScoreResponse, texts: list[str]) -> list[dict[str, Any]]:
    made_by = {"model": response.model, "precision": precision_of(response), "calibration": response.calibration.source}
    return [row_of(item, text, made_by) for item, text in zip(response.data, texts, strict=True)]


async def until_left(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if the browser leaves or cancels first, which ends the work, and so the server's."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        left.cancel()
        task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
