"""Calls a Litmus server over HTTP: readiness, models, one streamed chat answer, one score.

Knows no Gradio and shows nothing. Whatever goes wrong on the way leaves here as a `ServerError` whose message is a sentence.
"""

import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from app.errors import LitmusError
from app.schemas import ErrorResponse, ModelCard, ModelList, Readiness, Score, ScoreFailure, ScoreResponse, Usage, UsedCalibration

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 300.0
HOW_TO_START = "Start one with `make run`, then reload this page."
QUEUED = re.compile(r": queued position=(\d+)(?: eta_s=(\d+))?")
Fields = dict[str, Any]
Answer = TypeVar("Answer", ModelList, ScoreResponse)


class ServerError(LitmusError):
    """The server could not be reached, refused, or broke off. `message` is meant for a reader."""

    code = "server"


@dataclass(frozen=True, slots=True)
class Place:
    """In the queue for a slot; 1 is the next. `wait_s` is what the server expects, if it knows."""

    position: int
    wait_s: int | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a streamed answer; `finish_reason` and `usage` come once, near its end. `queued` is said before the first text."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    queued: Place | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """What was said of one text, what that rests on, and how long it took the server."""

    score: Score
    calibration: UsedCalibration
    total_s: float


@dataclass(frozen=True, slots=True)
class Client:
    """Holds an address, no connection: each call opens its own, so that calls of different event loops never share one."""

    server_url: str
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False, compare=False)

    async def ready(self) -> Readiness:
        """A server that is loading answers 503 with its status as the body; that is an answer, not an error."""
        async with self._connection() as http:
            response = await http.get("/ready")
            try:
                return Readiness.model_validate_json(response.content)
            except ValidationError:
                raise _refusal(response.status_code, response.headers, response.content) from None

    async def models(self) -> list[ModelCard]:
        async with self._connection() as http:
            response = _accepted(await http.get("/v1/models"))
            return _understood(ModelList, response).data

    async def score(self, text: str, method: str | None, model: str | None = None) -> Scored:
        """With its sentences and tokens. No method: the server's choice."""
        chosen: Fields = {"methods": None if method is None else [method], "model": model}
        body: Fields = {"text": text, "granularity": "token", **{name: value for name, value in chosen.items() if value is not None}}
        async with self._connection() as http:
            answer = _understood(ScoreResponse, _accepted(await http.post("/v1/score", json=body)))
        if len(answer.data) != 1:
            raise ServerError(f"The server answered one text with {len(answer.data)} scores.")
        first = answer.data[0]
        if isinstance(first, ScoreFailure):
            raise ServerError(_sentence(first.message))
        return Scored(first, answer.calibration, answer.timing.total_s)

    async def chat(self, body: Fields) -> AsyncGenerator[Chunk, None]:
        """Chunks as they arrive. Closing this generator closes the connection, which is how the server learns of a stop."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with self._connection() as http, http.stream("POST", "/v1/chat/completions", json=asked) as response:
            if response.is_error:
                raise _refusal(response.status_code, response.headers, await response.aread())
            async for line in _lines(response):
                if place := QUEUED.fullmatch(line):
                    yield Chunk(queued=Place(int(place[1]), int(place[2]) if place[2] else None))
                if not line.startswith("data:"):
                    continue
                payload = line.removeprefix("data:").strip()
                if payload == "[DONE]":
                    return
                yield _chunk(payload)
        raise ServerError("The answer broke off: the server closed the connection before it was complete.")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            async with httpx.AsyncClient(base_url=self.server_url, timeout=timeout, verify=self.tls, trust_env=False) as http:
                yield http
        except httpx.ConnectError as error:
            raise ServerError(f"No Litmus server answers at {self.server_url}. {HOW_TO_START}") from error
        except httpx.TimeoutException as error:
            raise ServerError(f"The server at {self.server_url} took too long to answer. Please try again.") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ServerError(f"{self.server_url!r} is not the address of a server: it should look like http://127.0.0.1:8000.") from error
        except httpx.HTTPError as error:
            raise ServerError("The connection to the server was lost before the answer was complete.") from error


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines split at the line feed only: httpx's own `aiter_lines` also splits at U+2028, which JSON text may hold."""
    rest = ""
    async for text in response.aiter_text():
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line.removesuffix("\r")


def _chunk(payload: str) -> Chunk:
    try:
        event = json.loads(payload)
        if "error" in event:
            raise ServerError(_sentence(ErrorResponse.model_validate(event).error.message))
        usage = Usage.model_validate(event["usage"]) if event.get("usage") else None
        if not event["choices"]:
            return Chunk(usage=usage)
        choice = event["choices"][0]
        return Chunk(choice["delta"].get("content") or "", choice.get("finish_reason"), usage)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError("The server sent a part of the answer that this page does not understand.") from error


def _accepted(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise _refusal(response.status_code, response.headers, response.content)
    return response


def _understood(kind: type[Answer], response: httpx.Response) -> Answer:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise ServerError(f"The server's answer to {response.url.path} is not one this page understands. Is it a Litmus server?") from error


def _refusal(status: int, headers: httpx.Headers, content: bytes) -> ServerError:
    """OpenAI's envelope as a sentence; what is not an envelope is not shown."""
    try:
        sentence = _sentence(ErrorResponse.model_validate_json(content).error.message)
    except ValidationError:
        return ServerError(f"The server answered with status {status} and no explanation.")
    wait_s = headers.get("retry-after", "")
    return ServerError(f"{sentence} Try again in {wait_s} s." if wait_s.isdigit() else sentence)


def _sentence(message: str) -> str:
    words = message.strip() or "The server gave no reason"
    return words if words[-1] in ".!?" else f"{words}."
