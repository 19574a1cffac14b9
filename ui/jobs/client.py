"""Calls the routes of a Litmus server for files, batches and fine-tuning. Knows no Gradio and no HTML.

Every failure is raised as a `ServerError` whose message is a sentence for the visitor.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from app.schemas.batches import BatchCounts
from ui.client import Client, RequestFields, read

SHOWN = 50  # jobs of each kind
PAGE, PAGES = 1000, 3  # events of one call, and calls for one curve
LATEST = 10  # events of a job that has ended: after its last step there are fewer
BATCHES_OFF = "Batches are off on this server. Its owner turns them on with the setting jobs.enabled."
TUNING_OFF = "Fine-tuning is off on this server: it has no /v1/fine_tuning/jobs. Batches do not need it."


Item = TypeVar("Item")


# What this page reads of bodies in whose fields a newer server may name a status or an ability that app.schemas does not know.
class Page(BaseModel, Generic[Item], frozen=True):
    data: list[Item]
    has_more: bool = False


class Problem(BaseModel, frozen=True):
    message: str
    code: str | None = None
    line: int | None = None  # from 1; None for the file as a whole


class Batch(BaseModel, frozen=True):
    id: str
    endpoint: str
    status: str
    created_at: int
    errors: Page[Problem] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: BatchCounts
    metadata: dict[str, str] | None = None


class Tuning(BaseModel, frozen=True):
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


class Event(BaseModel, frozen=True):
    """`data` of a metrics event: step, total_steps, train_loss and, now and then, valid_loss."""

    id: str
    level: str = "info"
    message: str = ""
    type: str = "message"
    data: dict[str, Any] | None = None


class Model(BaseModel, frozen=True):
    """`parent` is the base of one that was fine-tuned; `upstreams` answer for one that is not loaded here."""

    id: str
    default: bool = False
    parent: str | None = None
    root: str | None = None
    upstreams: list[Any] | None = None


class Stored(BaseModel, frozen=True):
    id: str


async def batches(client: Client) -> list[Batch]:
    """The latest first. Raises `MissingRoute`."""
    return read(Page[Batch], await client.call("GET", f"/v1/batches?limit={SHOWN}"), BATCHES_OFF).data


async def tunings(client: Client) -> list[Tuning]:
    """The latest first. Raises `MissingRoute`."""
    return read(Page[Tuning], await client.call("GET", f"/v1/fine_tuning/jobs?limit={SHOWN}"), TUNING_OFF).data


async def bases(client: Client) -> list[str]:
    """Names of the models that can be fine-tuned, the default one first."""
    found = read(Page[Model], await client.call("GET", "/v1/models")).data
    own = [model for model in found if model.root in {None, model.id}]  # each once, by its own name
    return [model.id for model in sorted(own, key=lambda model: not model.default) if model.parent is None and not model.upstreams]


async def events(client: Client, id: str) -> list[Event]:
    """The latest of a fine-tuning job, the oldest of them first."""
    found: list[Event] = []
    for _ in range(PAGES):
        after = f"&after={found[-1].id}" if found else ""
        page = read(Page[Event], await client.call("GET", f"/v1/fine_tuning/jobs/{id}/events?limit={PAGE}{after}"))
        found += page.data
        if not page.has_more or not page.data:
            break
    return found[::-1]


async def latest_events(client: Client, id: str) -> list[Event]:
    """A few of a fine-tuning job, the oldest of them first: of one that has ended they tell whether it was trained at all."""
    return read(Page[Event], await client.call("GET", f"/v1/fine_tuning/jobs/{id}/events?limit={LATEST}")).data[::-1]


async def start_batch(client: Client, file: str, endpoint: str, name: str) -> Batch:
    """The name is kept as the batch's metadata, so that the list can show it."""
    fields: RequestFields = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": {"name": name}}
    return read(Batch, await client.call("POST", "/v1/batches", fields), BATCHES_OFF)


async def start_tuning(client: Client, fields: RequestFields) -> Tuning:
    return read(Tuning, await client.call("POST", "/v1/fine_tuning/jobs", fields), TUNING_OFF)


async def cancel_batch(client: Client, id: str) -> Batch:
    return read(Batch, await client.call("POST", f"/v1/batches/{id}/cancel"))


async def change_tuning(client: Client, id: str, change: str) -> Tuning:
    """`change` is cancel, pause or resume."""
    return read(Tuning, await client.call("POST", f"/v1/fine_tuning/jobs/{id}/{change}"))


async def upload(client: Client, name: str, purpose: str, chunks: AsyncIterator[bytes]) -> str:
    """Sends a file on as it comes, and returns its id."""
    boundary = secrets.token_hex(16)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    async with client.opened("POST", "/v1/files", _form(boundary, name, purpose, chunks), headers) as response:
        await response.aread()
        return read(Stored, response).id


async def delete(client: Client, *files: str) -> None:
    """What could not be deleted expires by itself."""
    await asyncio.gather(*(client.call("DELETE", f"/v1/files/{file}") for file in files))


async def _form(boundary: str, name: str, purpose: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    yield f'{head}purpose"\r\n\r\n{purpose}\r\n{head}file"; filename="{name.replace(chr(34), "%22")}"\r\n\r\n'.encode()
    async for chunk in chunks:
        yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()
