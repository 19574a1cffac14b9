"""Calls the routes of a Litmus server that are for administrators: its state, its models, the memory that a model would take.

Knows no Gradio. Every failure is raised as a `ServerError` whose message is a sentence for the visitor.
"""

from urllib.parse import quote

import httpx
from pydantic import BaseModel

from app.schemas import AdminModel, AdminModelList
from app.schemas.overview import Overview
from ui.client import Answer, Client, RequestFields, ServerError, read

ADMIN_ONLY = "admin_only"  # code of the error
NOT_ADMIN = (
    "This tab is for administrators, and the role of your key is not admin. Log out, then log in with a key whose role is admin, to see it."
)


class NotAdmin(ServerError):
    """The visitor's key may not ask this."""


# What this page reads of the body: a newer server may name a kind of cache that app.schemas does not know.
class Device(BaseModel, frozen=True):
    name: str
    free_bytes: int
    total_bytes: int
    fits: bool
    context: int | None = None  # tokens, as the device holds them


class Estimate(BaseModel, frozen=True):
    weights_bytes: int
    cache_bytes: int
    activation_bytes: int
    overhead_bytes: int
    total_bytes: int
    devices: list[Device]
    advice: list[str]


async def overview(client: Client) -> Overview:
    return _read(Overview, await client.call("GET", "/overview"), "This server cannot tell what it is doing (GET /overview).")


async def models(client: Client) -> list[AdminModel]:
    """The versions of all models."""
    return _read(
        AdminModelList,
        await client.call("GET", "/admin/models"),
        "This server cannot load and unload models while it runs (/admin/models).",
    ).data


async def load(client: Client, name: str, fields: RequestFields) -> AdminModel:
    """Starts to load a model, or another version of it. Returns before it is loaded."""
    return _read(AdminModel, await client.call("POST", _path_of(name), fields))


async def unload(client: Client, name: str, default: str | None = None) -> AdminModel:
    """Starts to unload a model. `default` is the default model from then on."""
    successor = "" if default is None else f"?default={quote(default, safe='')}"
    return _read(AdminModel, await client.call("DELETE", _path_of(name) + successor))


async def estimate(client: Client, fields: RequestFields) -> Estimate:
    return _read(
        Estimate, await client.call("POST", "/admin/estimate", fields), "This server cannot estimate memory (POST /admin/estimate)."
    )


def _path_of(name: str) -> str:
    return f"/admin/models/{quote(name)}"


def _read(kind: type[Answer], response: httpx.Response, missing: str = "") -> Answer:
    """As `ui.client.read`. Raises `NotAdmin`, too."""
    try:
        return read(kind, response, missing)
    except ServerError as error:
        raise NotAdmin(NOT_ADMIN) if error.code == ADMIN_ONLY else error from None
