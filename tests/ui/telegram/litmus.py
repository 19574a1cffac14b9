"""A Litmus server without a model: it repeats what it was sent, so that a test sees whose answer came to whom."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from streams import EventStream

from tests.ui.fakelitmus import SCORES, SOURCE, USAGE, envelope, event, score_result

HOLD = "HOLD"  # a question with this word is answered with two words, and then nothing until `release`


@dataclass
class Litmus:
    """`refusals`: status and envelope of the next answers. Fields may be changed by the test's thread at any time."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    release: bool = False
    left: list[str] = field(default_factory=list)  # questions whose answers nobody waited for
    running: int = 0
    most: int = 0  # requests at once
    wait_s: float = 0.0
    finish_reason: str = "stop"
    comment: str = ""
    answer: str | None = None  # instead of the question

    def refuse(self, status: int, message: str, code: str) -> None:
        body = envelope(message)
        body["error"]["code"] = code
        self.refusals.append((status, body))

    def refusal(self) -> Response | None:
        if not self.refusals:
            return None
        status, body = self.refusals.pop(0)
        return JSONResponse(body, status, headers={"Retry-After": "7"} if status == 429 else {})

    async def stream(self, question: str) -> AsyncGenerator[str, None]:
        complete = False
        try:
            yield f"{self.comment}\n\n"
            for index, word in enumerate(f"You said: {question}".split(" ") if self.answer is None else [self.answer]):
                while index == 2 and HOLD in question and not self.release:
                    await asyncio.sleep(0.01)
                yield event({"content": word if index == 0 else f" {word}"})
                await asyncio.sleep(self.wait_s)
            yield event({}, finish_reason=self.finish_reason)
            yield "data: [DONE]\n\n"
            complete = True
        finally:
            self.running -= 1
            if not complete:
                self.left.append(question)


def create_litmus(litmus: Litmus) -> FastAPI:
    app = FastAPI()

    async def received(request: Request) -> dict[str, Any]:
        body = await request.json()
        litmus.requests.append(body)
        litmus.keys.append(request.headers.get("authorization", ""))
        return body

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        text = (await received(request))["text"]
        litmus.running += 1
        litmus.most = max(litmus.most, litmus.running)
        await asyncio.sleep(litmus.wait_s)
        litmus.running -= 1
        result = score_result(text, explanation=f"You sent: {text}")
        return litmus.refusal() or JSONResponse(
            {**SCORES, "usage": USAGE, "calibration": {"source": SOURCE, "reason": None}, "data": [result]}
        )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        question = (await received(request))["messages"][-1]["content"]
        if refusal := litmus.refusal():
            return refusal
        litmus.running += 1
        litmus.most = max(litmus.most, litmus.running)
        return EventStream(litmus.stream(question))

    return app
