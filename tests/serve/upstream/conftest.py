import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai_server import OpenAIServer, answer
from serving import wait_for

from app.setting_groups import LimitSettings
from app.settings import Settings, read
from serve.admission.admit import admission, tell_when_to_return
from serve.admission.pace import Pace
from serve.middleware import install
from serve.observe.middleware import observe
from serve.routes import create_routes
from serve.upstream import upstream
from serve.upstream.gateway import Gateway

LIMIT = 200_000
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello."}]


@dataclass
class Front:
    """Litmus in front of two servers. The model `one` is at the first, `both` at both, `narrow` is at the first, one request at a time, and
    `hasty` there, too, where it may be silent for a moment only.
    """

    url: str
    gateway: Gateway
    servers: tuple[OpenAIServer, OpenAIServer]
    http: httpx.Client

    @property
    def server(self) -> OpenAIServer:
        return self.servers[0]

    def chat(self, **fields: Any) -> httpx.Response:
        return self.http.post(CHAT, json={"messages": MESSAGES, "model": "one", **fields})

    def events(self, response: httpx.Response) -> list[Any]:
        """The data of a stream; `[DONE]` as it is."""
        data = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
        return [each if each == "[DONE]" else json.loads(each) for each in data]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="of-a-client", max_retries=0, timeout=10)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        wait_for(condition, 10)

    def alive(self, model: str) -> int:
        return len(self.gateway.upstreams.pools[model].alive)


def settings_of(servers: tuple[OpenAIServer, OpenAIServer]) -> Settings:
    first, second = servers
    further: list[dict[str, Any]] = [
        {"upstream": first.url, "name": "both"},
        {"upstream": f"{second.url}/v1", "name": "both"},
        {"upstream": first.url, "name": "narrow", "upstream_concurrency": 1},
        {"upstream": first.url, "name": "hasty", "upstream_timeout_s": 0.1},
    ]
    default = ["--model.upstream", first.url, "--model.name", "one", "--model.upstream_key", "of-litmus"]
    return read([*default, "--models", json.dumps(further), "--queue.max_waiting", "2", "--security.banned_users", '["banned"]'])


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
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def whole_front() -> Iterator[Front]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream, "LOOK_S", 0.1)
        patch.setattr(upstream, "FIRST_WAIT_S", 0.02)
        servers = OpenAIServer(), OpenAIServer()
        app, gateway = create_app(settings_of(servers))
        with running(app) as url, httpx.Client(base_url=url, timeout=10) as http:
            yield Front(url, gateway, servers, http)


@pytest.fixture
def front(whole_front: Front) -> Front:
    """With both servers alive and as they were."""
    for server in whole_front.servers:
        server.behave = answer
        server.start()
        server.calls.clear()
    wait_for(lambda: all(whole_front.gateway.upstreams.alive.values()) and whole_front.alive("both") == 2, 10)
    return whole_front
