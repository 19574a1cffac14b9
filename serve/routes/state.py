"""The routes that report state: health, readiness, served models, slots. They ask the router, and translate what engines report."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.routing import APIRoute, iter_route_contexts

from app.engine.events import Report
from app.engine.facts import Facts, Weights
from app.engine.pages import CacheReport
from app.models.revision import VERSION
from app.schemas import (
    CacheState,
    Capability,
    DecisionState,
    DefaultSamplingParams,
    ErrorResponse,
    Health,
    Method,
    ModelCard,
    ModelList,
    Readiness,
    SlotList,
    Version,
    WeightsCard,
)
from app.schemas.modelinfo import ModelInfo, ModelInfoList
from app.scoring.detector import UNCALIBRATED, Detector
from app.tokenizer import Tokenizer
from serve.routes.overview import slot_state, waiting_state
from serve.upstream.cards import Cards, rfc3339
from serve.wire.modelinfo import info_of, list_of
from serve.workers.progress import progress_of
from serve.workers.router import Router

FAVICON = FilePath(__file__).with_name("favicon.ico")
Responses = dict[int | str, dict[str, Any]]  # by status, as FastAPI documents them

ERROR_RESPONSES: Responses = {
    400: {"model": ErrorResponse, "description": "a field is wrong; `param` names it"},
    403: {"model": ErrorResponse, "description": "this user may not use the server"},
    404: {"model": ErrorResponse, "description": "no such model"},
    408: {"model": ErrorResponse, "description": "the body came too slowly, or the request's deadline passed"},
    413: {"model": ErrorResponse, "description": "the body is too large"},
    415: {"model": ErrorResponse, "description": "the body is in an encoding that is not read"},
    429: {
        "model": ErrorResponse,
        "description": "the queue is full, or a limit of the client is reached; Retry-After says when to try again",
    },
    503: {"model": ErrorResponse, "description": "the model is loading, restarting or shutting down"},
}
ERROR_RESPONSES_NO_USER = {status: response for status, response in ERROR_RESPONSES.items() if status != 403}  # bodies without `user`
SLOTS_ERRORS: Responses = {status: ERROR_RESPONSES[status] for status in (400, 404, 503)}


AnthropicVersion = Annotated[str | None, Header(description="sent by Anthropic's clients; the answer then has the form that they read")]


def add_state(
    routes: APIRouter, router: Router, started: int, detectors: Mapping[str, Detector], tokenizers: Mapping[str, Tokenizer]
) -> None:
    def card(facts: Facts, default: str) -> ModelCard:
        status, methods = router.statuses[facts.parent or facts.name], detectors.get(facts.name, UNCALIBRATED).methods(facts)
        return card_of(facts, started, default, methods).model_copy(update={"status": status})

    def info(card: ModelCard) -> ModelInfo:
        tokenizer = tokenizers.get(card.parent or card.root or card.id)
        return info_of(card, None if tokenizer is None else tokenizer.chat)

    cards = Cards(router, started, card)

    _add_entries(routes)

    @routes.get("/ready", tags=["state"], summary="Is every model served?", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> JSONResponse:
        readiness = readiness_of(router)
        return JSONResponse(readiness.model_dump(exclude_none=True), 200 if readiness.status == "ready" else 503)

    @routes.get("/slots", tags=["state"], summary="What do the slots hold, and why?", responses=SLOTS_ERRORS)
    async def slots(
        model: Annotated[str | None, Query(description="name of the model; the default model when left out")] = None,
        replica: Annotated[int, Query(description="number of the model's replica, from 0")] = 0,
    ) -> SlotList:
        return slots_of(await router.report(model, replica), router.facts(model))

    @routes.get("/v1/models", tags=["models"], summary="What is served, and how", responses={503: ERROR_RESPONSES[503]})
    async def models(anthropic_version: AnthropicVersion = None) -> ModelList | ModelInfoList:
        """The served models, the default one first; in Anthropic's form for a client that names its version.

        A field of a request that this server does not know, or its model has no use for, is left out, and named in the header
        `X-Litmus-Ignored` of the response; the setting `server.strict` refuses it. Any other field that would change the answer and cannot
        be served is always a 400.
        """
        found = cards.all()
        return ModelList(data=found) if anthropic_version is None else list_of([info(card) for card in found])

    @routes.get(
        "/v1/models/{name:path}", tags=["models"], summary="One model", responses={404: ERROR_RESPONSES[404], 503: ERROR_RESPONSES[503]}
    )
    async def model(
        name: Annotated[str, Path(examples=["storyteller"])], anthropic_version: AnthropicVersion = None
    ) -> ModelCard | ModelInfo:
        found = cards.one(name)
        return found if anthropic_version is None else info(found)


def _add_entries(routes: APIRouter) -> None:
    """What needs no model."""

    @routes.get("/", include_in_schema=False)
    async def index(request: Request) -> RedirectResponse:
        pages = {getattr(route, "path", None) for route in request.app.routes}
        return RedirectResponse("/ui" if "/ui" in pages else "/docs")

    @routes.get("/v1", include_in_schema=False)
    async def api(request: Request) -> dict[str, Any]:
        """What somebody sees who opens the base URL of a client."""
        routes = {str(context.path): context.original_route for context in iter_route_contexts(request.app.routes)}
        paths = sorted(path for path, route in routes.items() if isinstance(route, APIRoute) and route.include_in_schema)
        return {"object": "api", "name": "Litmus", "documentation": "/docs", "routes": paths}

    @routes.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> FileResponse:
        return FileResponse(FAVICON, media_type="image/x-icon", headers={"Cache-Control": "public, max-age=86400"})

    @routes.get("/health", tags=["state"], summary="Is the server alive?")
    async def health() -> Health:
        return Health()

    @routes.get("/version", tags=["state"], summary="Which Litmus is this?")
    async def version() -> Version:
        return Version(version=VERSION)


def readiness_of(router: Router) -> Readiness:
    models = dict(router.statuses)
    waiting: Literal["loading", "degraded"] = "loading" if "loading" in models.values() or router.awaits_adapters else "degraded"
    status = "ready" if router.ready else "draining" if router.draining else waiting
    return Readiness(status=status, models=models, progress=progress_of(router.replicas) or None)


def card_of(facts: Facts, started: int, default: str, methods: list[Method]) -> ModelCard:
    """`started` is the server's start as Unix time in seconds, which stands for that of a base."""
    created = started if facts.made is None else facts.made
    return ModelCard(
        id=facts.name,
        display_name=facts.name,
        created_at=rfc3339(created),
        parent=facts.parent,
        created=created,
        default=facts.name == default,
        context=facts.context,
        max_model_len=facts.context,
        text_window=facts.text_window,
        slots=facts.slots,
        revision=facts.revision,
        quantize=facts.quantize,
        dtype=facts.dtype,
        device=facts.device,
        observer=facts.observer,
        chat=facts.chat,
        methods=methods,
        tools=facts.tools if facts.chat else None,
        capabilities=capabilities_of(facts),
        default_sampling_params=DefaultSamplingParams(
            **{name: getattr(facts.sampling, name) for name in DefaultSamplingParams.model_fields}
        ),
        weights=weights_of(facts.weights),
        observer_weights=None if facts.observer_weights is None else weights_of(facts.observer_weights),
        draft=facts.draft,
        draft_weights=None if facts.draft_weights is None else weights_of(facts.draft_weights),
    )


def weights_of(weights: Weights) -> WeightsCard:
    return WeightsCard(
        format=weights.format,
        types=list(weights.types),
        parameters=weights.parameters,
        bytes=weights.bytes,
        layers_with_16_bit_inputs=list(weights.inputs_of_16_bits),
    )


def cache_state(cache: CacheReport) -> CacheState:
    pages = cache.pages
    return CacheState(
        page_tokens=cache.page_tokens,
        pages=pages.used + pages.cached + pages.free,
        used=pages.used,
        shared=pages.shared,
        cached=pages.cached,
        free=pages.free,
        prompt_tokens=cache.prompt_tokens,
        found_tokens=cache.found_tokens,
        set_back=cache.set_back,
    )


def slots_of(report: Report, facts: Facts) -> SlotList:
    return SlotList(
        model=facts.name,
        slots=[slot_state(slot) for slot in report.slots],
        waiting=[waiting_state(event) for event in report.waiting],
        texts=report.texts,
        cache=cache_state(report.cache),
        decisions=[
            DecisionState(
                at=decision.at_s,
                request=decision.request,
                slot=decision.slot,
                reason=decision.reason,
                waited_s=decision.waited_s,
                reused_tokens=decision.reused_tokens,
                prompt_tokens=decision.prompt_tokens,
            )
            for decision in report.decisions
        ],
    )


def capabilities_of(facts: Facts) -> list[Capability]:
    """Chat and tools need a template for them; a search needs several slots at once."""
    supported: dict[Capability, bool] = {
        "chat": facts.chat,
        "completions": True,
        "score": True,
        "embeddings": True,
        "tools": facts.chat and facts.tools is not None,
        "structured_output": True,
        "beam_search": facts.slots > 1,
        "contrastive_search": facts.slots > 1,
    }
    return [capability for capability, is_supported in supported.items() if is_supported]
