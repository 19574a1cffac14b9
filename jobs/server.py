"""The server as a worker sees it, over HTTP: it reads the input, answers the lines and takes the finished files. Knows no table."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import httpx

from app.settings import Settings
from jobs.leases import Task
from jobs.runs import Claim

OWNER = "X-Litmus-Owner"  # on whose behalf the worker asks
MADE_FOR = "X-Litmus-Made-For"
TAKES_SLOT = frozenset({"/v1/chat/completions", "/v1/completions"})
READ_S, CONNECT_S = 60.0, 5.0
SERVE_S = 180.0  # that workers of a model may take to read an adapter
BAD_REQUEST = 400
MAX_QUOTED = 2000  # characters of an answer that is not JSON


class Unavailable(Exception):
    """The server cannot be reached, or says that it cannot answer now."""


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
        self._line_timeout = httpx.Timeout(settings.jobs.line_timeout_s, connect=CONNECT_S)
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
        """None: not within `jobs.line_timeout_s`. Raises `Unavailable` where there is no server."""
        try:
            response = await self._http.post(task.endpoint, json=body, headers={OWNER: task.owner}, timeout=self._line_timeout)
        except httpx.ReadTimeout:
            return None
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from error
        return Answer(
            response.status_code, response.headers.get("x-request-id", ""), _object_of(response), response.headers.get("retry-after")
        )

    async def lines_at_once(self, task: Task, wanted: int) -> int:
        """How many lines may be in flight: `wanted`, but where each takes a slot, one slot is left to people. Raises `Unavailable`."""
        if task.endpoint not in TAKES_SLOT:
            return wanted
        try:
            response = await self._http.get("/v1/models", headers={OWNER: task.owner})
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from error
        await _check(response)
        return max(min(wanted, *(model["slots"] - 1 for model in response.json()["data"])), 1)

    async def input(self, task: Task, whole: bool = True) -> AsyncIterator[bytes]:
        """The input file of a task's batch, or only the task's own lines. Raises `Unavailable`, `Refused`."""
        part = task.part
        headers = {OWNER: task.owner} | ({} if whole else {"Range": f"bytes={part.first_byte}-{part.first_byte + part.bytes - 1}"})
        try:
            async with self._http.stream("GET", f"/v1/files/{task.input_file}/content", headers=headers) as response:
                await _check(response)
                async for chunk in response.aiter_bytes():
                    yield chunk
        except httpx.TransportError as error:
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
        try:
            response = await self._http.post(f"/v1/fine_tuning/jobs/{claim.batch}/serve", headers={OWNER: claim.owner}, timeout=SERVE_S)
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from error
        if response.status_code == BAD_REQUEST:
            return str(_object_of(response)["error"]["message"])
        await _check(response)
        return None

    async def _upload(self, headers: dict[str, str], fields: dict[str, str], file: tuple[str, BinaryIO, str]) -> str:
        upload = {"file": file}
        try:
            response = await self._http.post("/v1/files", data=fields, files=upload, headers=headers)
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from error
        await _check(response)
        id: str = response.json()["id"]
        return id


async def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    await response.aread()
    code = (_object_of(response).get("error") or {}).get("code")
    if response.status_code in {404, 416} or code == "owner_gone":
        raise Refused(f"{response.status_code} {code}")
    raise Unavailable(f"{response.status_code} {code}")


def _object_of(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = None
    if isinstance(body, dict):
        return body
    return {"error": {"message": response.text[:MAX_QUOTED], "type": "server_error", "param": None, "code": "not_json"}}
