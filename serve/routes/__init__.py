"""All routes of the API, one module per family. `create_routes` adds them in the order in which /docs lists them."""

from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from fastapi import APIRouter
from fastapi.routing import APIRoute

from app.scoring.detector import Detector
from app.tokenizer import Tokenizer
from serve.desk import Desk
from serve.routes.batches import add_batches
from serve.routes.chat import add_chat
from serve.routes.completions import add_completions
from serve.routes.embeddings import add_embeddings
from serve.routes.files import add_files
from serve.routes.fork import route_class
from serve.routes.generate import add_generate
from serve.routes.lenient import LenientRoute
from serve.routes.messages import add_messages
from serve.routes.metrics import add_metrics
from serve.routes.overview import add_overview
from serve.routes.responses import add_responses
from serve.routes.score import add_score
from serve.routes.service import Service
from serve.routes.state import add_state
from serve.routes.tokens import add_tokens
from serve.routes.tuned import Shelf, add_tuned
from serve.routes.tuning import Bases, add_records, add_tuning
from serve.upstream.gateway import Gateway
from serve.workers.router import Router


def create_routes(
    router: Router,
    tokenizers: Mapping[str, Tokenizer],
    started: int,
    banned_users: Container[str] = frozenset(),
    detectors: Mapping[str, Detector] = MappingProxyType({}),
    strict: bool = False,
) -> APIRouter:
    """`tokenizers` and `detectors` are by model name; `started` is the server's start as Unix time in seconds. `strict` refuses unknown
    fields of a body.
    """
    service = Service(router, tokenizers, ThreadPoolExecutor(2, "texts"), banned_users)
    routes = APIRouter(route_class=route_class(strict, router if isinstance(router, Gateway) else None, service))
    add_state(routes, router, started, detectors, tokenizers)
    add_metrics(routes, router)
    add_overview(routes, router, started)
    add_tokens(routes, service)
    add_generate(routes, service)
    add_score(routes, service, detectors)
    add_chat(routes, service)
    add_completions(routes, service)
    add_responses(routes, service)
    add_embeddings(routes, service)
    add_messages(routes, service)
    return routes


def create_job_routes(
    desk: Desk,
    strict: bool = False,
    bases: Bases = lambda name: None,
    shelf: Shelf | None = None,
    parents: Mapping[str, str] = MappingProxyType({}),
) -> APIRouter:
    """The routes of what runs later. `bases` says how a model is served, by its name, `shelf` serves what fine-tuning makes; `parents` are
    the bases of adapters, by the adapter's name.
    """
    routes = APIRouter(route_class=APIRoute if strict else LenientRoute)
    add_files(routes, desk)
    add_batches(routes, desk)
    add_tuning(routes, desk, bases, parents)
    add_records(routes, desk)
    add_tuned(routes, desk, shelf)
    return routes
