"""Fixtures: two fake servers. `fake_litmus` validates requests by app.schemas and can fail; `fake_server` imitates a model's timing."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fake_server import FakeServer
from fake_server import create_app as create_fake_server
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.schemas import ChatRequest, DefaultSamplingParams, ModelCard, ModelList, ScoreRequest, WeightsCard

CARD = ModelCard(
    id="fake",
    created=0,
    default=True,
    context=128,
    max_model_len=128,
    slots=2,
    revision="0123456789ab",
    quantize="none",
    dtype="float32",
    device="cpu",
    observer=None,
    chat=True,
    methods=["fast_detect"],
    capabilities=["chat", "completions", "score"],
    default_sampling_params=DefaultSamplingParams(
        temperature=0.8, top_p=0.95, top_k=40, min_p=0.05, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0
    ),
    weights=WeightsCard(format="float", types=["float32"], parameters=1000, bytes=4000, layers_with_16_bit_inputs=[]),
    observer_weights=None,
    tools=None,
)
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


@dataclass
class FakeLitmus:
    """`chats` and `scores` list the outcome of each coming request: ok, busy (429), truncated, broken, error. After the list all are ok."""

    url: str
    chats: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    def next_outcome(self, outcomes: list[str]) -> str:
        return outcomes.pop(0) if outcomes else "ok"


def create_app(litmus: FakeLitmus) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[CARD])

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> Response:
        litmus.bodies.append(body)
        outcome = litmus.next_outcome(litmus.chats)
        if outcome == "busy":
            return JSONResponse({"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}}, 429)
        return StreamingResponse(events(outcome), media_type="text/event-stream")

    @app.post("/v1/score")
    async def score(body: ScoreRequest) -> Response:
        litmus.bodies.append(body)
        if litmus.next_outcome(litmus.scores) == "broken":
            return JSONResponse({"error": {"message": "no", "type": "server_error", "param": None, "code": "internal_error"}}, 500)
        data = [{"object": "score", "index": index} for index in range(len(body.all))]
        return JSONResponse({"data": data, "usage": {"prompt_tokens": 90, "completion_tokens": 0, "total_tokens": 90}})

    return app


async def events(outcome: str) -> AsyncIterator[str]:
    yield ": queued position=1 eta_s=0\n\n"
    yield chunk({"role": "assistant", "content": ""})
    for word in ("Once", " upon", " a time"):
        await asyncio.sleep(0.01)
        yield chunk({"content": word})
    if outcome == "truncated":
        return
    if outcome == "broken":
        raise ConnectionError("the worker died")
    if outcome == "error":
        yield f"data: {json.dumps({'error': {'message': 'died', 'code': 'worker_died'}})}\n\n"
    yield chunk({}, finish_reason="stop")
    yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
    yield "data: [DONE]\n\n"


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish_reason}]})}\n\n"


@contextmanager
def running(app: FastAPI, port: int) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=60)


@pytest.fixture
def run_app() -> Callable[[FastAPI, int], Any]:
    """`with run_app(app, port):` for a test with a server of its own."""
    return running


@pytest.fixture
def fake_litmus(free_port: int) -> Iterator[FakeLitmus]:
    litmus = FakeLitmus(f"http://127.0.0.1:{free_port}")
    with running(create_app(litmus), free_port):
        yield litmus


@pytest.fixture
def fake_server(free_port: int) -> Iterator[tuple[FakeServer, str]]:
    """A fake server, whose faults a test may set, and its URL."""
    server = FakeServer()
    with running(create_fake_server(server), free_port):
        yield server, f"http://127.0.0.1:{free_port}"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(ready: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, f"not ready after {timeout_s} s"
        time.sleep(0.01)
