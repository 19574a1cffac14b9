"""A fake OpenAI-compatible server without a model: it sends max_tokens words, a few milliseconds apart. `python tests/fake_server.py PORT`.

It imitates three effects: the prefill of a long prompt stalls all streams, a prompt seen before needs no prefill, a score slows streams.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from streams import EventStream

STEP_S = 0.002  # a decode step
PREFILL_S = 0.1  # of a prompt with LONG_WORDS or more
LONG_WORDS = 100
TEMPLATE_TOKENS = 5  # added to the words of a prompt


@dataclass
class FakeServer:
    """The state of the server, and the faults to imitate.

    `missing_tokens`: tokens that every answer lacks. `sends_done`: streams end with [DONE]. `extra_prompt_tokens`: added to the usage.
    """

    missing_tokens: int = 0
    sends_done: bool = True
    extra_prompt_tokens: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    scores: int = 0
    running_scores: int = 0
    running_prefills: int = 0
    seen: set[str] = field(default_factory=set)

    async def prefill(self, text: str) -> None:
        self.running_prefills += 1
        await asyncio.sleep(PREFILL_S if len(text.split()) >= LONG_WORDS and text not in self.seen else 0)
        self.seen.add(text)
        self.running_prefills -= 1

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        await self.prefill(body["messages"][0]["content"])
        tokens = body["max_tokens"] - self.missing_tokens
        for _ in range(tokens):
            yield event({"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
            await asyncio.sleep(STEP_S * (1 + 5 * self.running_scores))
            while self.running_prefills:
                await asyncio.sleep(STEP_S)
        words = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": words + TEMPLATE_TOKENS + self.extra_prompt_tokens, "completion_tokens": tokens}
        yield event({"choices": [], "usage": usage})
        if self.sends_done:
            yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def create_app(server: FakeServer) -> FastAPI:
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> Response:
        server.bodies.append(body)
        return EventStream(server.chat(body))

    @app.post("/v1/score")
    async def score(body: dict[str, Any]) -> Response:
        if list(body) != ["text"]:
            return JSONResponse({"error": {"message": "a score request has exactly one field, text"}}, 422)
        server.running_scores += 1
        await asyncio.sleep(5 * STEP_S)
        server.running_scores -= 1
        server.scores += 1
        return JSONResponse({"data": [{"object": "score", "index": 0}]})

    return app


if __name__ == "__main__":
    port, faults = sys.argv[1], json.loads(sys.argv[2]) if sys.argv[2:] else {}
    uvicorn.run(create_app(FakeServer(**faults)), host="127.0.0.1", port=int(port), log_level="critical")
