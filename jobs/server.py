"""The server as a worker sees it, over HTTP: it reads the input, answers the lines and takes the finished files. Knows no table."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import httpx

from app.schemas import MAX_TIMEOUT_S
from app.settings import Settings
from jobs.leases import Task
from jobs.runs import Claim

OWNER = "X-Litmus-Owner"  # on whose behalf the worker asks
MADE_FOR = "X-Litmus-Made-For"
DEADLINE = "X-Request-Timeout"  # of a line, which waits longer than the people for whom queue.timeout_s is
READ_S, CONNECT_S = 60.0, 5.0
LATER_S = 5.0  # than the worker's own: it ends the line
SERVE_S = 180.0  # that workers of a model may take to read an adapter
BAD_REQUEST, WHOLE, PART = 400, 200, 206
FILE = "application/octet-stream"
MAX_QUOTED = 2000  # characters of a refusal that is not JSON


class Unavailable(Exception):
    """The server cannot be reached, says that it cannot answer now, or something between answers in its place."""


class Refused(Exception):
    """The server will never do this: the input file or its owner's key is gone."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    request_id: str
    body: dict[str, Any]
    retry_after: str | None


class Server:
    """Open it with `async with`. `secret` is how the server knows its workers."""

    def __init__(self, settings: Settings, secret: str) -> None:
        url = settings.jobs.server or f"http://127.0.0.1:{settings.server.port}"
        limit_s = settings.jobs.line_timeout_s
        self._line_timeout = httpx.Timeout(limit_s, connect=CONNECT_S)
        self._deadline = {DEADLINE: str(min(limit_s + LATER_S, MAX_TIMEOUT_S))}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.jobs.lines_at_once),
            trust_env=False,
        )

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def answer(self, task: Task, body: dict[str, Any]) -> Answer | None:
        """None: not within `jobs.line_timeout_s`. Raises `Unavailable` where there is no server, or a success is no JSON object."""
        headers = {OWNER: task.owner, **self._deadline}
        try:
            response = await self._http.post(task.endpoint, json=body, headers=headers, timeout=self._line_timeout)
        except httpx.ReadTimeout:
            return None
        except httpx.RequestError as error:
            raise Unavailable(type(error).__name__) from error
        return Answer(
            response.status_code, response.headers.get("x-request-id", ""), _body_of(response), response.headers.get("retry-after")
        )

    async def slots(self, task: Task) -> dict[str | None, int]:
        """By model; under None those of the model that answers where none is named. Raises `Unavailable`, `Refused`."""
        response = await self._send("GET", "/v1/models", headers={OWNER: task.owner})
        await _check(response)
        try:
            cards = _object_of(response)["data"]
            return dict([(card["id"], card["slots"]) for card in cards] + [(None, card["slots"]) for card in cards if card["default"]])
        except (KeyError, TypeError) as error:
            raise Unavailable("the list of models does not say how many slots they have") from error

    async def input(self, task: Task, whole: bool = True) -> AsyncIterator[bytes]:
        """The input file of a task's batch, or only the task's own lines. Raises `Unavailable`, `Refused`."""
        part = task.part
        headers = {OWNER: task.owner} | ({} if whole else {"Range": f"bytes={part.first_byte}-{part.first_byte + part.bytes - 1}"})
        try:
            async with self._http.stream("GET", f"/v1/files/{task.input_file}/content", headers=headers) as response:
                await _check(response)
                if response.status_code != (WHOLE if whole else PART) or response.headers.get("content-type") != FILE:
                    raise Unavailable("what came is not the input file, or not the part of it that was asked for")
                async for chunk in response.aiter_bytes():
                    yield chunk
        except httpx.RequestError as error:
            raise Unavailable(type(error).__name__) from error

    async def keep(self, task: Task, kind: str, content: BinaryIO) -> str:
        """Upload a finished file for the owner of the batch, and return its id. What was uploaded for the same before is replaced."""
        fields = {"purpose": "batch_output"}
        if task.output_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(task.output_s)}
        headers = {OWNER: task.owner, MADE_FOR: f"{task.batch}/{kind}"}
        return await self._upload(headers, fields, (f"{task.batch}_{kind}.jsonl", content, "application/jsonl"))

    async def keep_results(self, claim: Claim, content: BinaryIO) -> str:
        """Upload the losses of a fine-tuning job for its owner, and return the file's id. Raises `Unavailable`, `Refused`."""
        headers = {OWNER: claim.owner, MADE_FOR: f"{claim.batch}/results"}
        return await self._upload(headers, {"purpose": "fine-tune-results"}, (f"{claim.batch}_metrics.csv", content, "text/csv"))

    async def serve(self, claim: Claim) -> str | None:
        """Have the model of a fine-tuning job served from now on. Returns why it cannot be, if so. Raises `Unavailable`, `Refused`."""
        response = await self._send("POST", f"/v1/fine_tuning/jobs/{claim.batch}/serve", headers={OWNER: claim.owner}, timeout=SERVE_S)
        if response.status_code == BAD_REQUEST:
            return str(_error_of(response).get("message"))
        await _check(response)
        return None

    async def _upload(self, headers: dict[str, str], fields: dict[str, str], file: tuple[str, BinaryIO, str]) -> str:
        response = await self._send("POST", "/v1/files", data=fields, files={"file": file}, headers=headers)
        await _check(response)
        id = _object_of(response).get("id")
        if not isinstance(id, str):
            raise Unavailable("the answer to an upload does not name the file")
        return id

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Raises `Unavailable` where no answer comes, or a damaged one."""
        try:
            return await self._http.request(method, path, **options)
        except httpx.RequestError as error:
            raise Unavailable(type(error).__name__) from error


async def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    await response.aread()
    code = _error_of(response).get("code")
    if response.status_code in {404, 416} or code == "owner_gone":
        raise Refused(f"{response.status_code} {code}")
    raise Unavailable(f"{response.status_code} {code}")


def _error_of(response: httpx.Response) -> dict[str, Any]:
    """Raises `Unavailable`."""
    error = _object_of(response).get("error")
    return error if isinstance(error, dict) else {}


def _body_of(response: httpx.Response) -> dict[str, Any]:
    """A refusal that is no JSON object is quoted in one. Raises `Unavailable` for such a success."""
    try:
        return _object_of(response)
    except Unavailable:
        if response.is_success:
            raise
        return {"error": {"message": response.text[:MAX_QUOTED], "type": "server_error", "param": None, "code": "not_json"}}


def _object_of(response: httpx.Response) -> dict[str, Any]:
    """Raises `Unavailable` for what is no JSON object, as the page of a proxy."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Unavailable(f"{response.status_code} without a JSON object")
    return body
