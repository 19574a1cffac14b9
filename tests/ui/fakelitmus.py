"""A fake Litmus server in a thread. A test sets how it answers (slowly, with a refusal, with a broken stream); it records requests
and disconnects.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from streams import EventStream

from app.schemas.overview import EXAMPLE
from tests.ui.fakejobs import FakeJobs, add_jobs

KEY = "litmus-key-of-the-tests"
TEXT_SEPARATOR = "\u2028"  # a line end to `str.splitlines`, an ordinary character in JSON
WORDS = ["Once ", "upon ", "a ", "time ", "<b>a fox</b> ", "met ", TEXT_SEPARATOR, "a crow", "."]
USAGE = {"prompt_tokens": 12, "completion_tokens": len(WORDS), "total_tokens": 12 + len(WORDS)}
CARD = {
    "id": "storyteller",
    "object": "model",
    "created": 1,
    "owned_by": "litmus",
    "default": True,
    "context": 4096,
    "max_model_len": 4096,
    "slots": 32,
    "revision": "0123456789ab",
    "quantize": "nf4",
    "dtype": "bfloat16",
    "device": "cpu",
    "observer": "storyteller-base",
    "chat": True,
    "tools": None,
    "methods": ["binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"],
    "capabilities": ["chat", "completions", "score"],
    "default_sampling_params": {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    },
    "weights": {"format": "float", "types": ["bfloat16"], "parameters": 1000, "bytes": 600, "layers_with_16_bit_inputs": []},
    "observer_weights": None,
}
BASE = {**CARD, "id": "base", "default": False, "observer": None, "methods": ["fast_detect", "perplexity", "log_rank"]}
NO_CHAT = {**BASE, "id": "mute", "chat": False, "capabilities": ["completions", "score"]}
ALWAYS = {"revision": None, "message": None, "loaded": None}
SERVED = {"id": "storyteller", "path": "models/storyteller", "status": "served", "in_flight": 3, "bytes": 412_090_368, **ALWAYS}
ESTIMATE = {"weights_bytes": 600, "cache_bytes": 300, "activation_bytes": 60, "overhead_bytes": 40, "total_bytes": 1000}
EXPLANATION = "The score 0.742 is below the threshold 0.901, which 1.0% of 2,000 human texts also are."

SOURCE = "2,000 stories of humans and 2,000 of storyteller"
SCORES = {
    "id": "s",
    "object": "score.list",
    "created": 1,
    "model": "storyteller",
    "observer": "storyteller-base",
    "quantize": "nf4",
    "dtype": "bfloat16",
    "system_fingerprint": "fp",
    "usage": USAGE,
    "timing": {"total_s": 0.25},
}


def score_result(text: str, **changes: Any) -> dict[str, Any]:
    """One result of /v1/score. Each word is a token; a sentence ends at a full stop before a blank."""
    tokens, start = [], 0
    for index, word in enumerate(text.split(" ")):
        begin, end = max(start - 1, 0), start + len(word)
        rank = (1, 40, 700, 5000)[index % 4]
        tokens.append({"text": text[begin:end], "start": begin, "end": end, "logprob": -0.5 * (index % 9), "rank": rank, "entropy": 2.25})
        start = end + 1
    ends = [*(end for end in range(1, len(text) + 1) if text[end - 1 : end + 1] == ". "), len(text)]
    sentences = [
        {"start": start, "end": end, "tokens": 2, "score": 0.6, "logprob": -1.5} for start, end in zip([0, *ends], ends, strict=False)
    ]
    statistics = {"log_perplexity": 3.1, "mean_log_rank": 1.2, "mean_entropy": 3.4, "cross_entropy": 4.18, "perplexity": 22.2}
    result = {
        "index": 0,
        "object": "score",
        "method": "binoculars",
        "scores": {"binoculars": 0.742},
        "direction": "lower",
        "verdict": "machine",
        "explanation": EXPLANATION,
        "scored_tokens": len(tokens),
        "windows": 1,
        "truncated": False,
        "normalisations": {},
        "warnings": [],
        "statistics": statistics,
        "sentences": sentences,
        "tokens": tokens,
    }
    return {**result, **changes}


@dataclass
class Fake:
    """How the server answers next, and the request bodies it got. It waits `first_wait_s` before the first word and `wait_s` after each.

    With `keys`, it refuses requests without one of them. `sent_keys` are those that it got.
    """

    url: str = ""
    words: list[str] = field(default_factory=lambda: list(WORDS))
    sse_comment: str = ": a comment"
    progress: tuple[int, int] | None = None
    thoughts: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    first_wait_s: float = 0.0
    wait_s: float = 0.0
    refusal: tuple[int, str] | None = None
    loading: dict[str, Any] | None = None  # progress by model: while it is there, chats and scores are refused as a server that starts does
    plain_failure: bool = False
    break_after: int | None = None
    error_after: int | None = None
    error_code: str = "test_refusal"
    hold_after: int | None = None  # of a chat: no further word while it is set
    score_changes: dict[str, Any] = field(default_factory=dict)
    score_failure: dict[str, Any] | None = None
    no_scores: bool = False
    calibration: dict[str, Any] = field(default_factory=lambda: {"source": SOURCE, "reason": None})
    ready: tuple[int, str] = (200, "ready")
    cards: list[dict[str, Any]] = field(default_factory=lambda: [CARD])
    presence: dict[str, str] = field(default_factory=dict)
    overview: tuple[int, dict[str, Any]] = field(default_factory=lambda: (200, EXAMPLE))  # answer of /overview
    looks: int = 0  # how often it was asked
    holds_estimate: bool = False  # an estimate has no answer while it is set
    unloaded: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    sent_keys: list[str] = field(default_factory=list)
    jobs: FakeJobs = field(default_factory=FakeJobs)
    disconnected: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        fresh = Fake()
        for name in self.__dataclass_fields__:
            if name != "url":
                setattr(self, name, getattr(fresh, name))

    def readiness(self) -> Response:
        if self.loading is not None:
            return JSONResponse({"status": "loading", "models": {"storyteller": "loading"}, "progress": self.loading}, 503)
        status_code, status = self.ready
        return JSONResponse({"status": status, "models": self.presence}, status_code)

    def refusal_response(self) -> Response | None:
        if self.plain_failure:
            return Response("<html>Bad Gateway</html>", status_code=502)
        if self.loading is not None:
            return JSONResponse(envelope("the model 'storyteller' is still loading; GET /ready says when it is served", "not_ready"), 503)
        if self.refusal is None:
            return None
        status, message = self.refusal
        return JSONResponse(envelope(message), status, headers={"Retry-After": "7"} if status == 429 else {})


def envelope(message: str, code: str = "test_refusal") -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


def create_fake_server(fake: Fake) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Response:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        fake.sent_keys.append(sent)
        if fake.keys and sent not in fake.keys and request.url.path != "/ready":
            problem = "this key is not one of this server's keys" if sent else "this server needs a key"
            return JSONResponse(envelope(problem), 401)
        return await call_next(request)

    @app.get("/ready")
    def ready() -> Response:
        return fake.readiness()

    @app.get("/v1/models")
    def models() -> Response:
        return fake.refusal_response() or JSONResponse({"object": "list", "data": fake.cards})

    @app.get("/overview")
    def overview() -> Response:
        fake.looks += 1
        status, body = fake.overview
        return JSONResponse({**body, "at": 1000.0 + 2 * fake.looks} if status == 200 else body, status)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        body = await request.json()
        fake.requests.append(body)
        await asyncio.sleep(fake.first_wait_s)
        texts = body["texts"] if "texts" in body else [body["text"]]
        results = [fake.score_failure or score_result(text, **fake.score_changes) for text in texts]
        return fake.refusal_response() or JSONResponse(
            {**SCORES, "calibration": fake.calibration, "data": [] if fake.no_scores else results}
        )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        fake.requests.append(await request.json())
        return fake.refusal_response() or EventStream(stream(fake))

    add_admin(app, fake)
    add_jobs(app, fake)
    return app


def add_admin(app: FastAPI, fake: Fake) -> None:
    @app.get("/admin/models")
    def versions() -> Response:
        return JSONResponse({"object": "list", "data": [SERVED]})

    @app.delete("/admin/models/{name}")
    def unload(name: str) -> Response:
        fake.unloaded.append(name)
        return JSONResponse({**SERVED, "status": "draining"}, 202)

    @app.post("/admin/estimate")
    async def estimate() -> Response:
        while fake.holds_estimate:
            await asyncio.sleep(0.02)
        return JSONResponse({**ESTIMATE, "devices": [], "advice": []})


async def stream(fake: Fake) -> AsyncGenerator[str, None]:
    complete = False
    try:
        yield event({"role": "assistant", "content": ""})
        yield f"{fake.sse_comment}\n\n"
        if fake.progress:
            progress = {"total": fake.progress[1], "cache": 0, "processed": fake.progress[0], "time_ms": 1}
            yield f"data: {json.dumps({'choices': [], 'prompt_progress': progress})}\n\n"
        await asyncio.sleep(fake.first_wait_s)
        for thought in fake.thoughts:
            yield event({"reasoning_content": thought})
            await asyncio.sleep(fake.wait_s)
        for index, word in enumerate(fake.words):
            if index == fake.break_after:
                complete = True
                return
            while index == fake.hold_after:
                await asyncio.sleep(0.02)
            if index == fake.error_after:
                yield f"data: {json.dumps(envelope('the worker died', fake.error_code))}\n\n"
            yield event({"content": word}, tokens=index + 1)
            await asyncio.sleep(fake.wait_s)
        yield event({}, finish_reason=fake.finish_reason)
        yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
        yield "data: [DONE]\n\n"
        complete = True
    finally:
        if not complete:
            fake.disconnected.set()


def event(delta: dict[str, str], finish_reason: str | None = None, tokens: int | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    usage = None if tokens is None else {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens}
    return f"data: {json.dumps({'id': 'c', 'choices': [choice], 'usage': usage}, ensure_ascii=False)}\n\n"


@contextmanager
def running(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serves the app from a thread, on a free port if none is given, and yields its address."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 60
    while not server.started:
        if time.monotonic() > deadline_s or not thread.is_alive():
            raise RuntimeError("the test server did not start")
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)
    listener.close()
