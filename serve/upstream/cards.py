"""What /v1/models and /ready say of the models of upstreams. Where an upstream does not say something, it is null. Knows no HTTP."""

import time
from collections.abc import Callable, Iterable
from typing import Any, get_args

from pydantic import ValidationError

from app.engine.facts import Facts
from app.errors import NotReady, UnknownModel
from app.schemas import Capability, ModelCard, UpstreamState
from serve.upstream.gateway import Gateway
from serve.upstream.pool import Pool
from serve.upstream.probe import LLAMA, VLLM
from serve.upstream.upstream import Upstream
from serve.upstream.wires import CHAT, EMBEDDINGS, SCORE, TEXT
from serve.workers.models import ANY
from serve.workers.router import Router

CAPABILITIES: dict[str, Capability] = {CHAT: "chat", TEXT: "completions", SCORE: "score", EMBEDDINGS: "embeddings"}  # by route
KNOWN: dict[str, tuple[Capability, ...]] = {LLAMA: ("structured_output",), VLLM: ("structured_output",)}  # beside the routes


class Cards:
    """Of all models of a server. `loaded` makes that of a model which is loaded here, for the name of the default model."""

    def __init__(self, router: Router, created: int, loaded: Callable[[Facts, str], ModelCard]) -> None:
        self._router, self._created, self._loaded = router, created, loaded
        self._pools = router.upstreams.pools if isinstance(router, Gateway) else {}

    def all(self) -> list[ModelCard]:
        """The default model first. Raises `NotReady` while there is none."""
        loaded = [*self._router.loaded_facts(), *self._router.adapted_facts()]
        cards = [self._named(self._loaded(facts, self._router.default)) for facts in loaded]
        cards += [self.one(name) for name, pool in self._pools.items() if pool.alive]
        cards = sorted(cards, key=lambda card: not card.default) or [self.one(self._router.default)]
        return [each for card in cards for each in (card, *(by_alias(card, alias) for alias in card.aliases if alias != ANY))]

    def one(self, name: str) -> ModelCard:
        """Raises `UnknownModel`, and `NotReady` for a model that was not reached or loaded yet."""
        own = self._router.name_of(name)
        if own != name and (name == ANY or name not in self._router.aliases):
            raise UnknownModel(
                f"no model is listed as '{name}', though requests for it are answered by '{own}', whose alias is '*'", param="model"
            )
        if own in self._pools:
            card = card_of(self._pools[own], self._created, own == self._router.default)
        else:
            card = self._loaded(self._router.facts(own), self._router.default)
        return self._named(card) if own == name else by_alias(self._named(card), name)

    def _named(self, card: ModelCard) -> ModelCard:
        return card.model_copy(update={"root": card.id, "aliases": self._router.aliases_of(card.id)})


def by_alias(card: ModelCard, alias: str) -> ModelCard:
    """The card of a model under another of its names."""
    return card.model_copy(update={"id": alias, "default": False})


def card_of(pool: Pool, created: int, is_default: bool) -> ModelCard:
    """Raises `NotReady` while no upstream of the model answers."""
    first = next(iter(pool.alive), None)
    if first is None or first.abilities is None:
        raise NotReady(f"no server that answers for '{pool.name}' can be reached at the moment; GET /ready says when one can")
    contexts = [upstream.abilities.context for upstream in pool.alive if upstream.abilities is not None]
    context = min((each for each in contexts if each is not None), default=None)
    ours: dict[str, Any] = {
        "id": pool.name,
        "created": created,
        "display_name": pool.name,
        "created_at": rfc3339(created),
        "owned_by": first.abilities.kind,
        "default": is_default,
        "context": context,
        "max_model_len": context,
        "slots": sum(upstream.limit for upstream in pool.alive),
        "capabilities": capabilities_of(pool.alive),
        "upstreams": [state_of(upstream) for upstream in pool.upstreams],
    }
    unknown = dict.fromkeys(name for name, field in ModelCard.model_fields.items() if field.is_required())
    theirs = {name: value for name, value in first.abilities.card.items() if name in ModelCard.model_fields}
    blank: dict[str, Any] = {**unknown, "chat": CHAT in first.abilities.routes, "methods": []}
    try:
        return ModelCard.model_validate({**blank, **theirs, **ours})
    except ValidationError:  # a Litmus of another version
        return ModelCard.model_validate({**blank, **ours})


def capabilities_of(upstreams: Iterable[Upstream]) -> list[Capability]:
    """What any of them can do; a request goes to one that can do it."""
    found: dict[Capability, None] = {}
    for abilities in (upstream.abilities for upstream in upstreams if upstream.abilities is not None):
        said = abilities.card.get("capabilities")
        by_route = [name for route, name in CAPABILITIES.items() if route in abilities.routes]
        found |= dict.fromkeys(by_route if not isinstance(said, list) else [name for name in get_args(Capability) if name in said])
        found |= dict.fromkeys((*(("tools",) if abilities.tools else ()), *KNOWN.get(abilities.kind, ())))
    return list(found)


def state_of(upstream: Upstream) -> UpstreamState:
    abilities = upstream.abilities
    return UpstreamState(
        url=upstream.url,
        kind=None if abilities is None else abilities.kind,
        model=upstream.settings.upstream_model if abilities is None else abilities.model,
        alive=upstream.alive,
        problem=None if upstream.alive else upstream.reason,
        in_flight=upstream.load,
        concurrency=upstream.limit,
        routes=[] if abilities is None else sorted(abilities.routes),
    )


def rfc3339(seconds: int) -> str:
    """A time since 1970 in UTC, as Anthropic's API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
