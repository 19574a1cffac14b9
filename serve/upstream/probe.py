"""Finds out what an upstream is and what it can do: from its list of models, and from how its routes answer to an empty body.

Knows no request and no client.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from serve.upstream.wires import OURS, SCORE, WIRES

MODELS = "/v1/models"
HEALTH = "/health"
MAX_BYTES = 4 * 1024 * 1024
OWNERS = {"llamacpp": "llama.cpp"}  # by `owned_by`; others are kinds as they are
ABSENT = frozenset({404, 405, 501})  # answers of a route that is not there, or is turned off
CONTEXTS = ("context", "max_model_len", "context_length", "n_ctx")  # Litmus, vLLM and SGLang, hosted services, llama-server
LITMUS, LLAMA, VLLM = "litmus", "llama.cpp", "vllm"


class Unreachable(Exception):
    """The upstream cannot be used. The message says why, in a sentence that may be logged."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """`model` is the model's name there; `card` what a Litmus says of it."""

    kind: str
    model: str
    context: int | None = None
    routes: frozenset[str] = frozenset()
    tools: bool | None = None  # whether its chats take them; None: it does not say
    card: Mapping[str, Any] = field(default_factory=dict)


async def find_model(http: httpx.AsyncClient, asked: str | None, name: str) -> Abilities:
    """What the upstream says of the model, without its routes. Raises `Unreachable`, and httpx's errors."""
    health = await http.get(HEALTH)
    if health.status_code >= 500:
        raise Unreachable(f"GET {HEALTH} says {health.status_code}: it is loading or shutting down")
    response = await http.get(MODELS)
    if response.status_code in {401, 403}:
        raise Unreachable(f"it refuses the key of upstream_key ({response.status_code})")
    if response.status_code != 200:
        raise Unreachable(f"GET {MODELS} says {response.status_code}")
    return abilities_of(_chosen(_cards(response), asked, name))


def abilities_of(card: Mapping[str, Any]) -> Abilities:
    owner = str(card.get("owned_by") or "unknown")[:64]
    kind = OWNERS.get(owner, owner)
    meta = card.get("meta")
    known = {**(meta if isinstance(meta, dict) else {}), **card}
    context = next((known[name] for name in CONTEXTS if isinstance(known.get(name), int)), None)
    return Abilities(kind, card["id"], context, card=card if kind == LITMUS else {})


def _cards(response: httpx.Response) -> list[dict[str, Any]]:
    """The models of the list that have a name, each also under its aliases."""
    try:
        listed = response.json()["data"]
        return [card for card in listed if isinstance(card.get("id"), str)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unreachable(f"GET {MODELS} does not list models as OpenAI does") from None


def _chosen(cards: list[dict[str, Any]], asked: str | None, name: str) -> dict[str, Any]:
    wanted = name if asked is None else asked
    named = [card for card in cards if wanted == card["id"] or wanted in (card.get("aliases") or ())]
    if named:
        return named[0]
    if asked is None and len({card.get("root") or card["id"] for card in cards}) == 1:  # one model, perhaps by several names
        return cards[0]
    raise Unreachable(f"it has no model '{wanted}'; set upstream_model to one of the {len(cards)} models that it lists")


async def explore(http: httpx.AsyncClient, found: Abilities) -> Abilities:
    """Adds what has to be tried. Raises httpx's errors."""
    routes = await _find_routes(http, found.kind)
    said = found.card.get("capabilities")
    lacking = {SCORE} if isinstance(said, list) and "score" not in said else set()  # a Litmus may itself have the model from an upstream
    return replace(found, routes=routes - lacking, tools=await _takes_tools(http) if found.kind == LLAMA else None)


async def _find_routes(http: httpx.AsyncClient, kind: str) -> frozenset[str]:
    """The routes that answer an empty body as a mistake and not as a path that is unknown. Nothing is generated."""
    asked = [path for path in WIRES if kind == LITMUS or path not in OURS]
    there = await asyncio.gather(*(_is_there(http, path) for path in asked))
    return frozenset(path for path, is_there in zip(asked, there, strict=True) if is_there)


async def _is_there(http: httpx.AsyncClient, path: str) -> bool:
    async with http.stream("POST", path, json={}) as response:
        return response.status_code not in ABSENT


async def _takes_tools(http: httpx.AsyncClient) -> bool | None:
    """Whether llama-server's chat template has a place for tools: where it has none, they would be dropped. None where it does not say."""
    response = await http.get("/props")
    try:
        said = response.json()["chat_template_caps"]["supports_tools"]
    except (ValueError, KeyError, TypeError):
        return None
    return bool(said)
