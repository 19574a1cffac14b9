"""The page's routes for jobs: what there is, a file on its way to the server, a start, a change, a download; all with the visitor's key.

What the server refuses is an answer with a `problem`, a sentence. Keeps nothing.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.schemas.batches import Endpoint
from ui.calls import MAX_BYTES, read_body
from ui.client import Client, MissingRoute, RequestFields, ServerError
from ui.documents.route import file_name
from ui.jobs import client, view
from ui.visitors import Visitors

SHARED_KEY = "This page calls the server with one key for all of its visitors, so their jobs would be each other's: it shows none."
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
NOT_A_CALL = "The page sent a call that it does not understand. Reload it."
Id = Annotated[str, Field(pattern=f"^{ID.pattern}$")]
Route = Callable[[Request], Awaitable[Response]]
Call = Callable[[Client, bytes], Awaitable[dict[str, Any]]]


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BatchStart(Fields):
    file: Id
    endpoint: Endpoint
    name: str = Field(max_length=512)


class TuningStart(Fields):
    file: Id
    valid: Id | None = None
    model: str = Field(max_length=200)
    epochs: int | None = None
    suffix: str | None = None
    name: str = Field(max_length=512)

    def request(self) -> RequestFields:
        """What is blank is left to the server."""
        optional = {"validation_file": self.valid, "suffix": self.suffix or None}
        hyperparameters = {} if self.epochs is None else {"n_epochs": self.epochs}
        return {
            "model": self.model,
            "training_file": self.file,
            "metadata": {"name": self.name},
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            **{name: value for name, value in optional.items() if value is not None},
        }


class BatchChange(Fields):
    kind: Literal["batch"]
    change: Literal["cancel"]
    id: Id


class TuningChange(Fields):
    kind: Literal["tuning"]
    change: Literal["cancel", "pause", "resume"]
    id: Id


CHANGE: TypeAdapter[BatchChange | TuningChange] = TypeAdapter(BatchChange | TuningChange)


def jobs_routes(visitors: Visitors) -> Mapping[str, Route]:
    """By their paths under the page."""
    routes: dict[str, Route] = {"/jobs": lambda request: listed(request, visitors.client(request))}
    routes["/jobs/files"] = lambda request: upload(request, visitors.client(request))
    routes["/jobs/content"] = lambda request: content(request, visitors.client(request))
    calls: dict[str, Call] = {"/jobs/batches": start_batch, "/jobs/tunings": start_tuning, "/jobs/change": change}
    routes |= {path: _route(visitors, call) for path, call in calls.items()}
    return {path: _own_key_only(visitors, route) for path, route in routes.items()}


def _own_key_only(visitors: Visitors, route: Route) -> Route:
    async def checked(request: Request) -> Response:
        return JSONResponse({"problem": SHARED_KEY}) if visitors.share_a_key else await route(request)

    return checked


def _route(visitors: Visitors, call: Call) -> Route:
    async def route(request: Request) -> Response:
        body = await read_body(request, MAX_BYTES)
        try:
            return JSONResponse(await call(visitors.client(request), body or b""))
        except ValidationError:
            return JSONResponse({"detail": NOT_A_CALL}, 400)
        except ServerError as error:
            return JSONResponse({"problem": error.message})

    return route


async def listed(request: Request, caller: Client) -> Response:
    """`open` in the query names the fine-tuning jobs whose curve is shown."""
    opened = set(request.query_params.getlist("open"))
    batches, tunings, models = await asyncio.gather(_batches(caller), _tunings(caller, opened), _models(caller))
    return JSONResponse({"batches": batches, "tunings": tunings, "models": models})


async def _batches(caller: Client) -> dict[str, Any]:
    try:
        found = await client.batches(caller)
    except ServerError as error:
        return _problem(error)
    return {"items": [_item(batch.id, batch.status, view.batch_html(batch, time.time())) for batch in found]}


async def _tunings(caller: Client, opened: set[str]) -> dict[str, Any]:
    try:
        found = await client.tunings(caller)
        asked = [job.id for job in found if job.id in opened]
        events = dict(zip(asked, await asyncio.gather(*(client.events(caller, id) for id in asked)), strict=True))
        folded = [job for job in found if job.id not in opened and view.may_lack_details(job)]
        latest = await asyncio.gather(*(client.latest_events(caller, job.id) for job in folded))
    except ServerError as error:
        return _problem(error)
    unfold = {job.id: view.has_details(job, told) for job, told in zip(folded, latest, strict=True)}
    drawn = [(job, view.tuning_html(job, events.get(job.id), time.time(), unfold.get(job.id, True))) for job in found]
    return {"items": [_item(job.id, job.status, html) for job, html in drawn]}


async def _models(caller: Client) -> list[str]:
    """Empty while they cannot be asked for: the lists say why."""
    try:
        return await client.bases(caller)
    except ServerError:
        return []


def _item(id: str, status: str, html: str) -> dict[str, Any]:
    return {"id": id, "live": view.is_live(status), "html": html}


def _problem(error: ServerError) -> dict[str, Any]:
    return {"items": [], "problem": error.message, "off": isinstance(error, MissingRoute)}


async def upload(request: Request, caller: Client) -> Response:
    purpose = request.headers.get("X-Purpose", "")
    if purpose not in {"batch", "fine-tune"}:
        return JSONResponse({"detail": NOT_A_CALL}, 400)
    try:
        return JSONResponse({"id": await client.upload(caller, file_name(request), purpose, request.stream())})
    except ServerError as error:
        return JSONResponse({"problem": error.message})
    except ClientDisconnect:
        return JSONResponse({"problem": "The upload was broken off."})


async def start_batch(caller: Client, body: bytes) -> dict[str, Any]:
    asked = BatchStart.model_validate_json(body)
    try:
        return {"id": (await client.start_batch(caller, asked.file, asked.endpoint, asked.name)).id}
    except ServerError:
        await client.delete(caller, asked.file)
        raise


async def start_tuning(caller: Client, body: bytes) -> dict[str, Any]:
    asked = TuningStart.model_validate_json(body)
    try:
        return {"id": (await client.start_tuning(caller, asked.request())).id}
    except ServerError:
        await client.delete(caller, *filter(None, (asked.file, asked.valid)))
        raise


async def change(caller: Client, body: bytes) -> dict[str, Any]:
    asked = CHANGE.validate_json(body)
    if asked.kind == "batch":
        return {"id": (await client.cancel_batch(caller, asked.id)).id}
    return {"id": (await client.change_tuning(caller, asked.id, asked.change)).id}


async def content(request: Request, caller: Client) -> Response:
    """A file of the visitor's, passed on as it comes."""
    file = request.query_params.get("file", "")
    if not ID.fullmatch(file):
        return JSONResponse({"detail": NOT_A_CALL}, 400)
    async with AsyncExitStack() as stack:
        try:
            response = await stack.enter_async_context(caller.opened("GET", f"/v1/files/{file}/content"))
        except ServerError as error:
            return JSONResponse({"detail": error.message}, 502)
        headers = {"Content-Disposition": response.headers.get("content-disposition", "attachment"), "Cache-Control": "no-store"}
        return Passed(response, stack.pop_all(), headers)


class Passed(StreamingResponse):
    """Passes a file on as it comes, then closes its connection: also when the visitor has left."""

    def __init__(self, response: httpx.Response, opened: AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(response.aiter_bytes(), headers=headers, media_type="application/octet-stream")
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            await super().__call__(scope, receive, send)
