"""A server with Litmus's wire and no model, whose chats go wrong on demand."""

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
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from talker import Talker
from talker import create_app as create_talker

from app.schemas import ChatRequest, ModelCard, ModelList, ScoreRequest

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
)
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


@dataclass
class Fake:
    """`chats` and `scores` say what becomes of the n-th request: ok, busy (429), truncated, broken, error; then ok for ever."""

    url: str
    chats: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    def next(self, fates: list[str]) -> str:
        return fates.pop(0) if fates else "ok"


def create_app(fake: Fake) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[CARD])

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> Response:
        fake.bodies.append(body)
        fate = fake.next(fake.chats)
        if fate == "busy":
            return JSONResponse({"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}}, 429)
        return StreamingResponse(events(fate), media_type="text/event-stream")

    @app.post("/v1/score")
    async def score(body: ScoreRequest) -> Response:
        fake.bodies.append(body)
        if fake.next(fake.scores) == "broken":
            return JSONResponse({"error": {"message": "no", "type": "server_error", "param": None, "code": "internal_error"}}, 500)
        data = [{"object": "score", "index": index} for index in range(len(body.all))]
        return JSONResponse({"data": data, "usage": {"prompt_tokens": 90, "completion_tokens": 0, "total_tokens": 90}})

    return app


async def events(fate: str) -> AsyncIterator[str]:
    yield ": queued position=1 eta_s=0\n\n"
    yield chunk({"role": "assistant", "content": ""})
    for word in ("Once", " upon", " a time"):
        await asyncio.sleep(0.01)
        yield chunk({"content": word})
    if fate == "truncated":
        return
    if fate == "broken":
        raise ConnectionError("the worker died")
    if fate == "error":
        yield f"data: {json.dumps({'error': {'message': 'died', 'code': 'worker_died'}})}\n\n"
    yield chunk({}, finish="stop")
    yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
    yield "data: [DONE]\n\n"


def chunk(delta: dict[str, str], finish: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


@contextmanager
def hosting(app: FastAPI, port: int) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait(lambda: server.started)
    yield
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def fake(free_port: int) -> Iterator[Fake]:
    fake = Fake(f"http://127.0.0.1:{free_port}")
    with hosting(create_app(fake), free_port):
        yield fake


@pytest.fixture
def talking(free_port: int) -> Iterator[tuple[Talker, str]]:
    """A talker to spoil, and its address."""
    talker = Talker()
    with hosting(create_talker(talker), free_port):
        yield talker, f"http://127.0.0.1:{free_port}"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(ready: Callable[[], bool], limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < end, f"not ready in {limit_s} s"
        time.sleep(0.01)
