"""The gate and the limits over the real routes, with a fake worker: what a client of a full server sees."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fakes import FACTS, FakeEngine, FakeWorker
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ports import free_port

from app.settings import LimitSettings, QueueSettings
from app.tokenizer import Tokenizer
from serve.admission.admit import admission, tell_when_to_return
from serve.admission.pace import Pace
from serve.middleware import install
from serve.routes import create_routes
from serve.workers.messages import Ready
from serve.workers.router import Router

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "seed": 1}


class Served:
    def __init__(self, folder: Path, limits: LimitSettings) -> None:
        self.router, self.pace, self.worker = Router([FACTS.name], QueueSettings(max_waiting=3)), Pace(), None
        self.router.replicas[0].queue = FakeWorker(self.router, FakeEngine())
        self.router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
        app = FastAPI()
        install(app, 20_000, before_body=admission(self.router, limits, self.pace))
        tell_when_to_return(app, self.pace)
        app.include_router(create_routes(self.router, {FACTS.name: Tokenizer(str(folder))}, 1))
        self.client = TestClient(app, raise_server_exceptions=False)

    def fill(self, jobs: int) -> None:
        """As if other requests had these in flight."""
        for index in range(jobs):
            self.router._flights[f"other {index}"] = None  # type: ignore[assignment]
        self.router.replicas[0].load = jobs


@pytest.fixture
def served(tiny_folder: Path) -> Iterator[Served]:
    served = Served(tiny_folder, LimitSettings())
    with served.client:
        yield served


def test_a_full_server_refuses_work_and_answers_everything_else(served: Served) -> None:
    assert served.client.post("/v1/chat/completions", json=CHAT).status_code == 200
    served.fill(5)
    refused = served.client.post("/v1/chat/completions", content="this is not read")
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (429, "queue_full", "1")
    for double in ("/chat/completions", "/completions/", "/embeddings"):
        assert served.client.post(double, content="this is not read").json() == refused.json()
    assert served.client.post("/v1/messages", content="").json()["type"] == "error"
    for path in ("/health", "/ready", "/v1/models"):
        assert served.client.get(path).status_code == 200
    assert served.client.post("/tokenize", json={"prompt": "a"}).status_code == 200


def test_a_request_that_is_too_large_for_what_is_left_hears_when_to_come_back(served: Served) -> None:
    """The fleet refuses it, as only it knows the number of jobs; the wait is that of the gate's pace."""
    clock = iter([*range(0, 40, 4), *[40.0] * 100])
    served.pace._clock = lambda: float(next(clock))
    for _ in range(10):
        served.pace.finish()
    served.fill(4)
    refused = served.client.post("/v1/chat/completions", json={**CHAT, "n": 2})
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (429, "queue_full", "5")
    assert "4 of at most 5 answers and texts" in refused.json()["error"]["message"]


def test_answers_of_the_real_routes_settle_the_tokens(tiny_folder: Path, clock: SimpleNamespace) -> None:
    """The usage that each route reports is found in its bytes, streamed or not."""
    served = Served(tiny_folder, LimitSettings(tokens_per_minute=100_000))
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": CHAT,
        "/v1/completions": {"prompt": "hi", "max_tokens": 2},
        "/v1/messages": {"messages": CHAT["messages"], "max_tokens": 2},
        "/v1/responses": {"input": "hi", "max_output_tokens": 16},
        "/v1/embeddings": {"input": "hi"},
    }
    with served.client as client:
        used = 0
        for path, body in bodies.items():
            for stream in (False, True) if path != "/v1/embeddings" else (False,):
                fields = (
                    {"stream": True, **({"stream_options": {"include_usage": True}} if "completions" in path else {})} if stream else {}
                )
                answer = client.post(path, json={**body, **fields})
                assert answer.status_code == 200, answer.text
                if not stream:
                    usage = answer.json()["usage"]
                    expected = sum(usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"))
                    assert expected > 0
                charged = charge_of(client, 100_000) - used
                assert charged == expected, (path, stream)
                used += charged
        words = client.post("/v1/completions", json={**bodies["/v1/completions"], "stream": True}).text.count("data: ")
        assert charge_of(client, 100_000) - used > words > 2


def test_the_metrics_say_whether_redis_counts(tiny_folder: Path) -> None:
    """That nothing listens there does not end the start."""
    place = f"127.0.0.1:{free_port()}"
    served = Served(tiny_folder, LimitSettings(requests_per_minute=2, storage=f"redis://:secret@{place}"))
    with served.client as client:
        body = {"prompt": "hi", "max_tokens": 1}
        assert [client.post("/v1/completions", json=body).status_code for _ in range(3)] == [200, 200, 429]
    registry = served.router.observer.metrics.registry
    assert registry.get_sample_value("litmus:limits_storage_up", {"storage": place}) == 0


def charge_of(client: TestClient, limit: int) -> int:
    """What has been charged, asked by a request that fails, which costs nothing but its estimate of one token meanwhile."""
    answer = client.post("/v1/completions", content=b"{")
    assert answer.status_code == 400
    return limit - int(answer.headers["x-ratelimit-remaining-tokens"]) - 1
