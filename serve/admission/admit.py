"""What decides whether a request is served at all, put together: the gate in front, the limits of each client behind the check of keys."""

from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware

from app.errors import QueueFull
from app.settings import LimitSettings
from serve.admission.gate import Gate, Work
from serve.admission.pace import Pace
from serve.observe.observer import Observer
from serve.wire.errors import error_response


class Served(Work, Protocol):
    """What it asks of the router."""

    @property
    def observer(self) -> Observer: ...


def admission(work: Served, settings: LimitSettings, pace: Pace) -> list[Middleware]:
    """In the order in which they decide. What finds out whose request it is belongs between the two."""
    gate = Middleware(Gate, work=work, pace=pace)
    if not settings.are_set:
        return [gate]
    from serve.admission.quota import Quota  # where there are no limits, the start need not wait for the libraries that count
    from serve.admission.store import Store

    store = Store(settings.storage, tell=lambda place, answers: work.observer.metrics.storage_up.labels(place).set(answers))
    return [gate, Middleware(Quota, settings=settings, store=store)]


def tell_when_to_return(app: FastAPI, pace: Pace) -> None:
    """What `Fleet.admit` refuses gets the Retry-After that the gate would give."""

    @app.exception_handler(QueueFull)
    async def _full(request: Request, error: QueueFull) -> JSONResponse:
        return error_response(error, request.url.path, {"Retry-After": str(pace.retry_after_s())})
