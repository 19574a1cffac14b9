"""Calls the routes of a Litmus server for files, batches and fine-tuning. Knows no Gradio and no HTML.

Every failure is raised as a `ServerError` whose message is a sentence for the visitor.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from app.schemas import ErrorResponse
from ui.client import Client, RequestFields, ServerError

NOT_FOUND = 404
SHOWN = 50  # jobs of each kind
PAGE, PAGES = 1000, 3  # events of one call, and calls for one curve
LATEST = 10  # events of a job that has ended: after its last step there are fewer
BATCHES_OFF = "Batches are off on this server. Its owner turns them on with the setting jobs.enabled."
TUNING_OFF = "Fine-tuning is off on this server: it has no /v1/fine_tuning/jobs. Batches do not need it."


class Off(ServerError):
    """The server has no such route."""


class Body(BaseModel):
    """What this page reads of a body; a newer server may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Problem(Body):
    message: str
    code: str | None = None
    line: int | None = None  # from 1; None for the file as a whole


class Problems(Body):
    data: list[Problem] = []


class Counts(Body):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(Body):
    id: str
    endpoint: str
    status: str
    created_at: int
    errors: Problems | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class Tuning(Body):
    id: str
    model: str
    status: str
    created_at: int
    estimated_finish: int | None = None
    fine_tuned_model: str | None = None
    error: Problem | None = None
    hyperparameters: dict[str, Any] | None = None
    result_files: list[str] = []
    trained_tokens: int | None = None
    metadata: dict[str, str] | None = None


class Event(Body):
    """`data` of a metrics event: step, total_steps, train_loss and, now and then, valid_loss."""

    id: str
    level: str = "info"
    message: str = ""
    type: str = "message"
    data: dict[str, Any] | None = None


class Batches(Body):
    data: list[Batch]


class Tunings(Body):
    data: list[Tuning]


class Events(Body):
    data: list[Event]
    has_more: bool = False


class Model(Body):
    """`parent` is the base of one that was fine-tuned; `upstreams` answer for one that is not loaded here."""

    id: str
    default: bool = False
    parent: str | None = None
    root: str | None = None
    upstreams: list[Any] | None = None


class Models(Body):
    data: list[Model]


class Stored(Body):
    id: str


Answer = TypeVar("Answer", bound=BaseModel)


async def batches(client: Client) -> list[Batch]:
    """The latest first. Raises `Off`."""
    return _read(Batches, await client.call("GET", f"/v1/batches?limit={SHOWN}"), BATCHES_OFF).data


async def tunings(client: Client) -> list[Tuning]:
    """The latest first. Raises `Off`."""
    return _read(Tunings, await client.call("GET", f"/v1/fine_tuning/jobs?limit={SHOWN}"), TUNING_OFF).data


async def bases(client: Client) -> list[str]:
    """Names of the models that can be fine-tuned, the default one first."""
    found = _read(Models, await client.call("GET", "/v1/models")).data
    own = [model for model in found if model.root in {None, model.id}]  # each once, by its own name
    return [model.id for model in sorted(own, key=lambda model: not model.default) if model.parent is None and not model.upstreams]


async def events(client: Client, id: str) -> list[Event]:
    """The latest of a fine-tuning job, the oldest of them first."""
    found: list[Event] = []
    for _ in range(PAGES):
        after = f"&after={found[-1].id}" if found else ""
        page = _read(Events, await client.call("GET", f"/v1/fine_tuning/jobs/{id}/events?limit={PAGE}{after}"))
        found += page.data
        if not page.has_more or not page.data:
            break
    return found[::-1]


async def latest_events(client: Client, id: str) -> list[Event]:
    """A few of a fine-tuning job, the oldest of them first: of one that has ended they tell whether it was trained at all."""
    return _read(Events, await client.call("GET", f"/v1/fine_tuning/jobs/{id}/events?limit={LATEST}")).data[::-1]


async def start_batch(client: Client, file: str, endpoint: str, name: str) -> Batch:
    """The name is kept as the batch's metadata, so that the list can show it."""
    fields: RequestFields = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": {"name": name}}
    return _read(Batch, await client.call("POST", "/v1/batches", fields), BATCHES_OFF)


async def start_tuning(client: Client, fields: RequestFields) -> Tuning:
    return _read(Tuning, await client.call("POST", "/v1/fine_tuning/jobs", fields), TUNING_OFF)


async def cancel_batch(client: Client, id: str) -> Batch:
    return _read(Batch, await client.call("POST", f"/v1/batches/{id}/cancel"))


async def change_tuning(client: Client, id: str, change: str) -> Tuning:
    """`change` is cancel, pause or resume."""
    return _read(Tuning, await client.call("POST", f"/v1/fine_tuning/jobs/{id}/{change}"))


async def upload(client: Client, name: str, purpose: str, chunks: AsyncIterator[bytes]) -> str:
    """Sends a file on as it comes, and returns its id."""
    boundary = secrets.token_hex(16)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    async with client.opened("POST", "/v1/files", _form(boundary, name, purpose, chunks), headers) as response:
        await response.aread()
        return _read(Stored, response).id


async def delete(client: Client, *files: str) -> None:
    """What could not be deleted expires by itself."""
    await asyncio.gather(*(client.call("DELETE", f"/v1/files/{file}") for file in files))


async def _form(boundary: str, name: str, purpose: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    yield f'{head}purpose"\r\n\r\n{purpose}\r\n{head}file"; filename="{name.replace(chr(34), "%22")}"\r\n\r\n'.encode()
    async for chunk in chunks:
        yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()


def _read(kind: type[Answer], response: httpx.Response, off: str = "") -> Answer:
    """The body of an answer. `off` is what a 404 means, where it means that there is no such route."""
    if response.is_error:
        raise _error_of(response, off)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise ServerError(f"This page cannot read the server's answer to {response.url.path}. Are both of the same version?") from error


def _error_of(response: httpx.Response, off: str) -> ServerError:
    if response.status_code == NOT_FOUND and off and not _is_of_a_model(response):
        return Off(off)
    try:
        error = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return ServerError(f"The server answered {response.url.path} with status {response.status_code} and no explanation.")
    sentence = error.message.strip() or "The server gave no reason"
    return ServerError(sentence if sentence[-1] in ".!?" else f"{sentence}.", code=error.code)


def _is_of_a_model(response: httpx.Response) -> bool:
    """Whether a 404 speaks of a model or a file that the request names, and not of the route."""
    try:
        return bool(json.loads(response.content)["error"].get("param"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
