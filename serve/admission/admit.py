"""What decides whether a request is served at all, put together: the gate in front, the limits of each client behind the check of keys."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware

from app.errors import QueueFull
from app.settings import LimitSettings
from serve.admission.gate import Gate, Work
from serve.admission.pace import Pace
from serve.wire.errors import error_response


def admission(work: Work, settings: LimitSettings, pace: Pace) -> list[Middleware]:
    """In the order in which they decide. What finds out whose request it is belongs between the two."""
    gate = Middleware(Gate, work=work, pace=pace)
    if not settings.are_set:
        return [gate]
    from serve.admission.quota import Quota  # where there are no limits, the start need not wait for the libraries that count
    from serve.admission.store import Store

    return [gate, Middleware(Quota, settings=settings, store=Store(settings.storage))]


def tell_when_to_return(app: FastAPI, pace: Pace) -> None:
    """What `Fleet.admit` refuses gets the Retry-After that the gate would give."""

    @app.exception_handler(QueueFull)
    async def _full(request: Request, error: QueueFull) -> JSONResponse:
        return error_response(error, request.url.path, {"Retry-After": str(pace.retry_after_s())})
