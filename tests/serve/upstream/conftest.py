import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai_server import OpenAIServer, answer
from serving import wait_for
from upstreams import create_app, running

from app.settings import Settings, read
from serve.upstream import upstream
from serve.upstream.gateway import Gateway

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello."}]


@dataclass
class Front:
    """Litmus in front of two servers. The model `one` is at the first, `both` at both, `narrow` is at the first, one request at a time, and
    `hasty` there, too, where it may be silent for a moment only. `plain` is at a third one, which has a chat and nothing else.
    """

    url: str
    gateway: Gateway
    servers: tuple[OpenAIServer, OpenAIServer]
    plain: OpenAIServer
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
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="of-a-client", max_retries=0, timeout=60)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        wait_for(condition)

    def alive(self, model: str) -> int:
        return len(self.gateway.upstreams.pools[model].alive)


def settings_of(servers: tuple[OpenAIServer, OpenAIServer], plain: OpenAIServer) -> Settings:
    first, second = servers
    further: list[dict[str, Any]] = [
        {"upstream": first.url, "name": "both"},
        {"upstream": f"{second.url}/v1", "name": "both"},
        {"upstream": first.url, "name": "narrow", "upstream_concurrency": 1},
        {"upstream": first.url, "name": "hasty", "upstream_timeout_s": 0.1},
        {"upstream": plain.url, "name": "plain"},
    ]
    default = ["--model.upstream", first.url, "--model.name", "one", "--model.upstream_key", "of-litmus"]
    return read([*default, "--models", json.dumps(further), "--queue.max_waiting", "2", "--security.banned_users", '["banned"]'])


@pytest.fixture(scope="module")
def whole_front() -> Iterator[Front]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream, "LOOK_S", 0.1)
        patch.setattr(upstream, "FIRST_WAIT_S", 0.02)
        patch.setattr(upstream, "LOOK_TIMEOUT_S", 60)
        servers, plain = (OpenAIServer(), OpenAIServer()), OpenAIServer()
        plain.routes = {CHAT}
        app, gateway = create_app(settings_of(servers, plain))
        with running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
            yield Front(url, gateway, servers, plain, http)


@pytest.fixture
def front(whole_front: Front) -> Front:
    """With both servers alive and as they were."""
    for server in (*whole_front.servers, whole_front.plain):
        server.behave = answer
        server.start()
        server.calls.clear()
    wait_for(lambda: all(whole_front.gateway.upstreams.alive.values()) and whole_front.alive("both") == 2)
    return whole_front
