"""Calls a Litmus server over HTTP: readiness, models, one streamed chat answer, one score.

Knows no Gradio and shows nothing. Every failure is raised as a `ServerError` whose message is a sentence for the visitor.
"""

import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from app.errors import LitmusError
from app.schemas import ErrorResponse, ModelCard, ModelList, Readiness, Score, ScoreFailure, ScoreResponse, Usage, UsedCalibration

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 300.0
NOT_FOUND = 404
REFUSED = frozenset({401, 403})  # statuses of a key that is not let in
HOW_TO_START = "Start one with `make run`; this page then goes on by itself."
# SSE comment lines: what the server tells while no text comes.
QUEUE_COMMENT = re.compile(r": queued position=(\d+)(?: eta_s=(\d+))?")
LOADING_COMMENT = re.compile(r": loading(?: (\d+%))?")
STOP_COMMENT = re.compile(r": (?:interrupted|set back): (.+)")
RequestFields = dict[str, Any]
Answer = TypeVar("Answer", bound=BaseModel)


class ServerError(LitmusError):
    """The server could not be reached, refused the request, or broke off the answer. `message` is shown to the visitor."""

    code = "server"


class MissingRoute(ServerError):
    """The server is of a version, or was started in a way, that has no such route."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A request that waits for a slot. `position` 1 is next; `wait_s` is the server's estimate, None if it has none."""

    position: int
    wait_s: int | None


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How many of the prompt's tokens the server has read, those that it still had from before included."""

    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Why nothing comes for a while, in `words`: the model was idle and is being loaded, or the answer has stopped and goes on later."""

    state: Literal["loading", "paused"]
    words: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a streamed answer. `finish_reason` comes once, near the end; `queue` and `progress` only before the first text."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    queue: QueueStatus | None = None
    thought: str = ""  # what a reasoning model thinks before it answers
    progress: PromptProgress | None = None
    loading: str = ""  # a sentence, while the server loads the model; then the request is sent again
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The score of one text, the calibration behind its verdict, and the time the server took."""

    score: Score
    calibration: UsedCalibration
    total_s: float
    model: str = ""
    precision: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    """Holds the server's address, a key if it needs one, and no connection.

    Each call opens its own, because calls may run in different event loops.
    """

    server_url: str
    key: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False, compare=False)

    async def ready(self) -> Readiness:
        """Returns the server's readiness. A server that is loading answers 503 with its status as the body; that is not an error."""
        async with self._connection() as http:
            response = await http.get("/ready")
            try:
                return Readiness.model_validate_json(response.content, extra="ignore")
            except ValidationError:
                raise _error_of(response) from None

    async def refusal(self) -> ServerError | None:
        """Why the server refuses this client's key, or that it has none; None if it is let in, also while the server loads its models."""
        async with self._connection() as http:
            response = await http.get("/v1/models")
            return _error_of(response) if response.status_code in REFUSED else None

    async def models(self) -> list[ModelCard]:
        async with self._connection() as http:
            cards = read(ModelList, await http.get("/v1/models")).data
            return [card for card in cards if card.root in {None, card.id}]  # each once, by its own name

    async def models_unless_loading(self, readiness: Readiness) -> list[ModelCard] | None:
        """None if the server has loaded no model yet."""
        try:
            return await self.models()
        except ServerError:
            if readiness.status == "loading":
                return None
            raise

    async def call(self, method: str, path: str, body: RequestFields | None = None) -> httpx.Response:
        """Calls a route that has no method of its own here. The response may be an error."""
        async with self._connection() as http:
            return await http.request(method, path, json=body)

    @asynccontextmanager
    async def opened(
        self, method: str, path: str, content: AsyncIterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """As `call`, for bodies that are sent and read as they come. An error of the server is raised."""
        async with self._connection() as http, http.stream(method, path, content=content, headers=headers) as response:
            if response.is_error:
                await response.aread()
                raise _error_of(response)
            yield response

    async def score(self, text: str, method: str | None, model: str | None = None, top_tokens: int = 0) -> ScoreResult:
        """Scores one text with its sentences and tokens, each with so many likeliest tokens beside it. Without a method or a model, the
        server uses its default.
        """
        fields: RequestFields = {"text": text, "granularity": "token", "distributions": True}
        response = await self._score({**fields, "top_tokens": top_tokens} if top_tokens else fields, method, model)
        if len(response.data) != 1:
            raise ServerError(f"The server returned {len(response.data)} scores for one text.")
        result = response.data[0]
        if isinstance(result, ScoreFailure):
            raise ServerError(_as_sentence(result.message))
        return ScoreResult(result, response.calibration, response.timing.total_s, response.model, precision_of(response))

    async def scores(self, texts: Sequence[str], method: str | None, model: str | None = None) -> ScoreResponse:
        """Scores several texts as wholes; a text that cannot be scored is a failure at its place."""
        response = await self._score({"texts": list(texts)}, method, model)
        if len(response.data) != len(texts):
            raise ServerError(f"The server returned {len(response.data)} scores for {len(texts)} texts.")
        return response

    async def _score(self, fields: RequestFields, method: str | None, model: str | None) -> ScoreResponse:
        optional: RequestFields = {"methods": None if method is None else [method], "model": model}
        body = {**fields, **{name: value for name, value in optional.items() if value is not None}}
        async with self._connection() as http:
            return read(ScoreResponse, await http.post("/v1/score", json=body))

    async def chat(self, body: RequestFields) -> AsyncGenerator[Chunk, None]:
        """Yields chunks as they arrive. Closing the generator closes the connection, which makes the server abort the request."""
        options = {"include_usage": True, "continuous_usage_stats": True}
        request = {**body, "stream": True, "stream_options": options, "return_progress": True}
        async with self._connection() as http, http.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.is_error:
                await response.aread()
                raise _error_of(response)
            async for line in _sse_lines(response):
                if (notice := _notice(line)) is not None:
                    yield notice
                if not line.startswith("data:"):
                    continue
                payload = line.removeprefix("data:").strip()
                if payload == "[DONE]":
                    return
                yield _parse_event(payload)
        raise ServerError("The answer broke off: the server closed the connection before it was complete.")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """Opens an HTTP client for one call and turns httpx's errors into `ServerError`."""
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
            async with httpx.AsyncClient(
                base_url=self.server_url, headers=headers, timeout=timeout, verify=self.tls, trust_env=False
            ) as http:
                yield http
        except httpx.ConnectError as error:
            raise ServerError(f"No Litmus server answers at {self.server_url}. {HOW_TO_START}") from error
        except httpx.TimeoutException as error:
            raise ServerError(f"The server at {self.server_url} took too long to answer. Please try again.") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ServerError(f"{self.server_url!r} is not a server address. It should look like http://127.0.0.1:8000.") from error
        except httpx.HTTPError as error:
            raise ServerError("The connection to the server was lost before the answer was complete.") from error


async def _sse_lines(response: httpx.Response) -> AsyncIterator[str]:
    """Splits the body at line feeds only: httpx's own `aiter_lines` also splits at U+2028, which JSON strings may contain."""
    rest = ""
    async for text in response.aiter_text():
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line.removesuffix("\r")


def _notice(line: str) -> Chunk | None:
    """What a comment line tells the visitor; None for every other line."""
    if comment := QUEUE_COMMENT.fullmatch(line):
        return Chunk(queue=QueueStatus(int(comment[1]), int(comment[2]) if comment[2] else None))
    if comment := LOADING_COMMENT.fullmatch(line):
        return Chunk(pause=Pause("loading", f"The server is loading the model{f': about {comment[1]}' if comment[1] else ''}"))
    if comment := STOP_COMMENT.fullmatch(line):
        return Chunk(pause=Pause("paused", comment[1][:1].upper() + comment[1][1:]))
    return None


def _parse_event(payload: str) -> Chunk:
    """Parses the JSON of one `data:` line. Raises `ServerError` if it is an error envelope or not a chunk."""
    try:
        event = json.loads(payload)
        if "error" in event:
            problem = ErrorResponse.model_validate(event, extra="ignore").error
            raise ServerError(_as_sentence(problem.message), param=problem.param, code=problem.code)
        usage = Usage.model_validate(event["usage"], extra="ignore") if event.get("usage") else None
        progress = _progress(event.get("prompt_progress"))
        if not event["choices"]:
            return Chunk(usage=usage, progress=progress)
        delta, finish_reason = event["choices"][0]["delta"], event["choices"][0].get("finish_reason")
        return Chunk(delta.get("content") or "", finish_reason, usage, None, delta.get("reasoning_content") or "", progress)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError("This page cannot read a part of the server's answer. Is it a Litmus server?") from error


def _progress(value: dict[str, int] | None) -> PromptProgress | None:
    """`cache` and `processed` as llama-server counts them: `processed` has the cached tokens in it."""
    return None if value is None else PromptProgress(int(value["processed"]), int(value["total"]))


def precision_of(response: ScoreResponse) -> str:
    return response.dtype if response.quantize == "none" else f"{response.quantize}, computing in {response.dtype}"


def read(kind: type[Answer], response: httpx.Response, missing: str = "") -> Answer:
    """The body of an answer; a newer server may say more. Raises `ServerError`, and where `missing` is a sentence, `MissingRoute` with it
    for a 404 that names nothing in the request.
    """
    if response.is_error:
        error = _error_of(response)
        is_of_route = response.status_code == NOT_FOUND and error.param is None
        raise MissingRoute(missing) if missing and is_of_route else error
    try:
        # Not strict, as requests are: once one of app.schemas' own validators has seen an object, pydantic takes no list in it for a pair.
        return kind.model_validate_json(response.content, extra="ignore", strict=False)
    except ValidationError as error:
        raise ServerError(
            f"This page cannot read the server's answer to {response.url.path}. Is it a Litmus server, and of the same version?"
        ) from error


def _error_of(response: httpx.Response) -> ServerError:
    """The error in OpenAI's envelope. A body that is not an envelope (a proxy's HTML, say) is not shown."""
    try:
        problem = ErrorResponse.model_validate_json(response.content, extra="ignore").error
    except ValidationError:
        return ServerError(f"The server answered {response.url.path} with status {response.status_code} and no explanation.")
    sentence, wait_s = _as_sentence(problem.message), response.headers.get("retry-after", "")
    words = f"{sentence} Try again in {wait_s} s." if wait_s.isdigit() else sentence
    return ServerError(words, param=problem.param, code=problem.code)


def _as_sentence(message: str) -> str:
    """Adds the full stop that a message may lack."""
    sentence = message.strip() or "The server gave no reason"
    return sentence if sentence[-1] in ".!?" else f"{sentence}."
