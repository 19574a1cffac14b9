"""The real routes over upstreams, in this process: what tests of serve/upstream share."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from app.settings import LimitSettings, Settings
from serve.admission.admit import admission, tell_when_to_return
from serve.admission.pace import Pace
from serve.middleware import install
from serve.observe.middleware import observe
from serve.routes import create_routes
from serve.upstream.gateway import Gateway

LIMIT = 200_000


def create_app(settings: Settings) -> tuple[FastAPI, Gateway]:
    gateway, pace = Gateway([], settings), Pace()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watcher = asyncio.create_task(gateway.upstreams.watch())
        yield
        watcher.cancel()

    app = FastAPI(lifespan=lifespan)
    install(app, LIMIT, before_body=admission(gateway, LimitSettings(tokens_per_minute=100_000), pace))
    tell_when_to_return(app, pace)
    observe(app, gateway.observer, True)
    app.include_router(create_routes(gateway, {}, 1, frozenset(settings.security.banned_users)))
    return app, gateway


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_keep_alive=600))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


def hello(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello."}], **fields}


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]
