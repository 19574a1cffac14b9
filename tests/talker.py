"""A server of OpenAI's wire without a model: as many words as were asked for, one every few milliseconds. `python tests/talker.py PORT`.

A long prompt stops every stream while it is read; the next turn of a talk is read at once; a score slows the streams down.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

STEP_S = 0.002
READ_S = 0.1  # of a prompt of LONG words or more
LONG = 100
WORDS_BEFORE = 5  # tokens of the template


@dataclass
class Talker:
    """`lost`: tokens that every answer lacks. `done`: ends a stream with [DONE]. `longer`: tokens added to what usage says of a prompt."""

    lost: int = 0
    done: bool = True
    longer: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    scores: int = 0
    scoring: int = 0
    reading: int = 0
    seen: set[str] = field(default_factory=set)

    async def read(self, text: str) -> None:
        self.reading += 1
        await asyncio.sleep(READ_S if len(text.split()) >= LONG and text not in self.seen else 0)
        self.seen.add(text)
        self.reading -= 1

    async def chat(self, body: dict[str, Any]) -> AsyncIterator[str]:
        await self.read(body["messages"][0]["content"])
        tokens = body["max_tokens"] - self.lost
        for _ in range(tokens):
            yield event({"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
            await asyncio.sleep(STEP_S * (1 + 5 * self.scoring))
            while self.reading:
                await asyncio.sleep(STEP_S)
        words = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": words + WORDS_BEFORE + self.longer, "completion_tokens": tokens}
        yield event({"choices": [], "usage": usage})
        if self.done:
            yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def create_app(talker: Talker) -> FastAPI:
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> Response:
        talker.bodies.append(body)
        return StreamingResponse(talker.chat(body), media_type="text/event-stream")

    @app.post("/v1/score")
    async def score(body: dict[str, Any]) -> Response:
        if list(body) != ["text"]:
            return JSONResponse({"error": {"message": "a score asks for one text"}}, 422)
        talker.scoring += 1
        await asyncio.sleep(5 * STEP_S)
        talker.scoring -= 1
        talker.scores += 1
        return JSONResponse({"data": [{"object": "score", "index": 0}]})

    return app


if __name__ == "__main__":
    number, flaws = sys.argv[1], json.loads(sys.argv[2]) if sys.argv[2:] else {}
    uvicorn.run(create_app(Talker(**flaws)), host="127.0.0.1", port=int(number), log_level="critical")
