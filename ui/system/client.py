"""Calls the routes of a Litmus server that are for administrators: its state, its models, the memory that a model would take.

Knows no Gradio. Every failure is raised as a `ServerError` whose message is a sentence for the visitor.
"""

import json
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from app.schemas import ErrorResponse
from app.schemas.overview import Overview
from ui.client import Client, RequestFields, ServerError

NOT_FOUND, FORBIDDEN = 404, 403
ADMIN_ONLY = "admin_only"  # code of the error
NOT_ADMIN = (
    "This tab is for administrators, and the role of your key is not admin. Log out, then log in with a key whose role is admin, to see it."
)


class NotAdmin(ServerError):
    """The visitor's key may not ask this."""


class MissingRoute(ServerError):
    """The server is of a version, or was started in a way, that has no such route."""


class Body(BaseModel):
    """What this page reads of a body; a newer server may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ServedModel(Body):
    """One version of a model. While another one loads or drains, the same id is listed twice."""

    id: str
    path: str
    revision: str | None = None
    status: Literal["served", "loading", "draining", "unloaded", "failed"]
    message: str | None = None
    loaded: float | None = None  # share of its loading that is done
    in_flight: int = 0
    bytes: int | None = None


class ServedModels(Body):
    data: list[ServedModel]


class Device(Body):
    name: str
    free_bytes: int
    total_bytes: int
    fits: bool


class Estimate(Body):
    weights_bytes: int
    cache_bytes: int
    activation_bytes: int
    overhead_bytes: int
    total_bytes: int
    devices: list[Device]
    advice: list[str]


Answer = TypeVar("Answer", bound=BaseModel)


async def overview(client: Client) -> Overview:
    return _read(Overview, await client.call("GET", "/overview"), "tell what it is doing (GET /overview)")


async def models(client: Client) -> list[ServedModel]:
    """The versions of all models."""
    return _read(ServedModels, await client.call("GET", "/admin/models"), "load and unload models while it runs (/admin/models)").data


async def load(client: Client, name: str, fields: RequestFields) -> ServedModel:
    """Starts to load a model, or another version of it. Returns before it is loaded."""
    return _read(ServedModel, await client.call("POST", _path_of(name), fields))


async def unload(client: Client, name: str, default: str | None = None) -> ServedModel:
    """Starts to unload a model. `default` is the default model from then on."""
    successor = "" if default is None else f"?default={quote(default, safe='')}"
    return _read(ServedModel, await client.call("DELETE", _path_of(name) + successor))


async def estimate(client: Client, fields: RequestFields) -> Estimate:
    return _read(Estimate, await client.call("POST", "/admin/estimate", fields), "estimate memory (POST /admin/estimate)")


def _path_of(name: str) -> str:
    return f"/admin/models/{quote(name)}"


def _read(kind: type[Answer], response: httpx.Response, ability: str | None = None) -> Answer:
    """The body of an answer. `ability` is what a server without this route cannot do; None where a 404 may mean something else."""
    if response.is_error:
        raise _error_of(response, ability)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise ServerError(f"This page cannot read the server's answer to {response.url.path}. Are both of the same version?") from error


def _error_of(response: httpx.Response, ability: str | None) -> ServerError:
    if response.status_code == NOT_FOUND and ability is not None and _detail(response).get("code") != "model_not_found":
        return MissingRoute(f"This server cannot {ability}.")
    try:
        error = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return ServerError(f"The server answered {response.url.path} with status {response.status_code} and no explanation.")
    if response.status_code == FORBIDDEN and error.code == ADMIN_ONLY:
        return NotAdmin(NOT_ADMIN)
    sentence = error.message.strip() or "The server gave no reason"
    return ServerError(sentence if sentence[-1] in ".!?" else f"{sentence}.")


def _detail(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.content)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}
