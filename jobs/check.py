"""Checks the input of a batch, line by line, and divides it into tasks. All or nothing: one wrong line, and the batch fails."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from app.schemas.batches import BatchProblem
from jobs.leases import Leases, Task
from jobs.policy import divide
from jobs.reading import RawLine, raw_lines
from jobs.server import Server

MAX_PROBLEMS = 100
MAX_ID = 512  # characters of a custom_id
FIELDS = {"custom_id", "method", "url", "body"}


class Problem(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class Check:
    """Reads one file. Afterwards it knows the problems, where each line ends, and the model that the first one names."""

    def __init__(self, endpoint: str, max_lines: int, max_line_bytes: int) -> None:
        self.endpoint = endpoint
        self.max_lines, self.max_line_bytes = max_lines, max_line_bytes
        self.problems: list[BatchProblem] = []
        self.ends: list[int] = []
        self.model: str | None = None
        self._line_of: dict[str, int] = {}  # by custom_id

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        async for line in raw_lines(chunks, self.max_line_bytes):
            if len(self.ends) >= self.max_lines:
                self._note(Problem("too_many_lines", f"the file has more than {self.max_lines} lines (jobs.max_lines)"), line.number)
                return
            self.ends.append(line.end)
            try:
                self._check(line)
            except Problem as problem:
                self._note(problem, line.number)
            if len(self.problems) >= MAX_PROBLEMS:
                return
        if not self.ends:
            self._note(Problem("empty_file", "the file has no lines; write one request a line"), None)

    def _check(self, line: RawLine) -> None:
        if line.text is None:
            raise Problem("line_too_long", f"the line is longer than {self.max_line_bytes} bytes (server.max_body_bytes)")
        request = parsed(line.text)
        check_sendable(request)
        missing = sorted(FIELDS - set(request))
        if missing:
            raise Problem("missing_required_parameter", f"'{missing[0]}' is missing", missing[0])
        unknown = sorted(set(request) - FIELDS)
        if unknown:
            raise Problem("unknown_parameter", f"'{unknown[0][:64]}' is none of {', '.join(sorted(FIELDS))}", unknown[0][:64])
        if request["method"] != "POST":
            raise Problem("invalid_method", "the method must be POST", "method")
        if request["url"] != self.endpoint:
            raise Problem("invalid_url", f"the url must be {self.endpoint}, the endpoint of the batch", "url")
        self._check_id(request["custom_id"], line.number)
        self._check_body(request["body"])

    def _check_id(self, id: Any, number: int) -> None:
        if not isinstance(id, str) or not 0 < len(id) <= MAX_ID:
            raise Problem("invalid_custom_id", f"custom_id must be a text of 1 to {MAX_ID} characters", "custom_id")
        earlier = self._line_of.setdefault(id, number)
        if earlier != number:
            raise Problem("duplicate_custom_id", f"line {earlier} has this custom_id, too; give each line its own", "custom_id")

    def _check_body(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise Problem("invalid_body", "body must be an object: what would be sent to the endpoint", "body")
        if body.get("stream"):
            raise Problem("invalid_body", "the answers of a batch cannot be streamed; leave out stream", "body.stream")
        if self.model is None and isinstance(body.get("model"), str):
            self.model = body["model"]

    def _note(self, problem: Problem, line: int | None) -> None:
        self.problems.append(BatchProblem(code=problem.code, message=problem.message, param=problem.param, line=line))


def parsed(text: bytes) -> dict[str, Any]:
    """Raises `Problem` for a line that is no JSON object."""
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        raise Problem("invalid_json_line", "the line is not JSON") from None
    if not isinstance(request, dict):
        raise Problem("invalid_json_line", "the line must be a JSON object")
    return request


def check_sendable(request: dict[str, Any]) -> None:
    """Raises `Problem` for what Python's parser takes and no JSON in UTF-8 can have."""
    try:
        json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise Problem(
            "invalid_json_line", "a text is no Unicode: it has half of a character, such as \\ud83d without the other half"
        ) from None
    except (ValueError, RecursionError):
        raise Problem(
            "invalid_json_line", "the line has NaN or Infinity, a number that is too large, or too many brackets in each other"
        ) from None


async def check_input(task: Task, server: Server, leases: Leases, check: Check, lines_per_task: int) -> None:
    """Raises `Refused`, `Unavailable`, `LeaseLost`."""
    await check.read(server.input(task))
    if check.problems:
        await asyncio.to_thread(leases.fail, task, check.problems)
    else:
        await asyncio.to_thread(leases.divide, task, list(divide(check.ends, lines_per_task)), check.model)
