"""What observing costs, in microseconds of CPU time. `PYTHONPATH=. python tests/observing_cost.py` writes all of it."""

import asyncio
import logging
import pickle
import sys
import time
import timeit
from collections.abc import Callable

from prometheus_client import generate_latest
from starlette.types import Message, Receive, Scope, Send

from app.engine.events import Delta
from app.engine.request import Generate
from app.log import JSONFormatter
from serve.observe.logs import request_id
from serve.observe.middleware import Observe
from serve.observe.observer import Observer

SLOTS = 32
REQUESTS = 2000
SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


def cpu_us(work: Callable[[], object], number: int) -> float:
    """Of one call: the least of seven rounds."""
    return min(timeit.repeat(work, number=number, repeat=7, timer=time.thread_time)) / number * 1e6


def token_us(observer: Observer) -> float:
    """A token of a step with 32 slots."""
    for index in range(SLOTS):
        observer.admitted(Generate(str(index), (1,), 9), "model")
    step = [Delta(str(index), "t", (5,)) for index in range(SLOTS)]
    return cpu_us(lambda: observer.events(step), 500) / SLOTS


def job_us(observer: Observer) -> float:
    """An answer of two tokens, from its admission to its end."""

    def run() -> None:
        observer.admitted(Generate("job", (1,) * 100, 9), "model")
        observer.events([Delta("job", "t", (5,))])
        observer.events([Delta("job", "t", (5,), "stop")])
        observer.ended("job")

    return cpu_us(run, REQUESTS)


def request_us(observer: Observer, access_log: bool) -> float:
    """An HTTP request: what the middleware adds to an application that does nothing."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        pass

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def run(app: Callable[..., object]) -> None:
        for _ in range(REQUESTS):
            await app({**SCOPE}, receive, send)  # type: ignore[misc]

    observed, bare = (cpu_us(lambda app=app: asyncio.run(run(app)), 1) for app in (Observe(nothing, observer, access_log), nothing))
    return (observed - bare) / REQUESTS


def main() -> None:
    handler = logging.StreamHandler(open("/dev/null", "w"))  # noqa: SIM115  (open as long as the process)
    handler.setFormatter(JSONFormatter(request_id))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    observer = Observer(["model"])
    delta = Delta("job", "t", (5,))
    costs = {
        "a token": token_us(observer),
        "an answer": job_us(observer),
        "an HTTP request, without its line": request_us(observer, False),
        "an HTTP request, with its line as JSON": request_us(observer, True),
        "writing /metrics, without asking the engines": cpu_us(lambda: generate_latest(observer), 10),
        "for comparison: a token on its way between the processes": cpu_us(lambda: pickle.loads(pickle.dumps(delta)), REQUESTS),
    }
    for name, microseconds in costs.items():
        sys.stdout.write(f"{microseconds:8.2f} us  {name}\n")


if __name__ == "__main__":
    main()
