"""What an upstream says when it refuses or fails, as one of our errors. Knows no route."""

import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from app.errors import LitmusError, UpstreamFailed

MAX_MESSAGE = 2000  # characters of what an upstream says
KEY_REFUSED = frozenset({401, 407})  # it is our key that it refuses, not that of our client
RATE_LIMITED, UNAVAILABLE, FORBIDDEN = 429, 503, 403
MAX_WAIT_S = 3600
WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NO_REASON = "the model's server refused the request and gave no reason"


class Foreign(LitmusError):
    """In an upstream's words. `told` is its code, which only the answer has: an upstream may make up any number of them, and `code` is
    counted by metrics.
    """

    def __init__(self, message: str, *, param: str | None = None, told: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, param=param)
        self.told = told
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def envelope(self) -> dict[str, dict[str, str | None]]:
        error = super().envelope()["error"]
        return {"error": {**error, "code": self.told or self.code}}


class Passed(Foreign):
    """A refusal by an upstream, with its status, its message and its field."""

    type, code = "invalid_request_error", "upstream_refused"

    def __init__(
        self, status: int, message: str, *, param: str | None = None, told: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, param=param, told=told, retry_after=retry_after)
        self.status = status
        self.type = "rate_limit_error" if status == RATE_LIMITED else Passed.type


class Failed(Foreign, UpstreamFailed):
    """A failure of an upstream, with its message."""


def refusal(response: httpx.Response, content: bytes, names: tuple[str, str]) -> LitmusError:
    """The error of an answer with a status of 300 or more. `names` are the model's there and here."""
    status = response.status_code
    if status < 400:
        return UpstreamFailed(f"the model's server answered with a redirect ({status}), which is not followed")
    if status in KEY_REFUSED:
        return UpstreamFailed(f"the model's server refused the key that this server has for it ({status})")
    told, wait = parse(content), seconds_of(response.headers.get("retry-after"))
    message = message_of(told, names)
    if status >= 500:
        text = f"the model's server failed ({status}){f': {message}' if message else ' and gave no reason'}"
        return Failed(text, retry_after=wait if status == UNAVAILABLE else None)
    return Passed(
        status,
        message or NO_REASON,
        param=_text(told.get("param")),
        told=code_of(told),
        retry_after=wait if status == RATE_LIMITED else None,
    )


def seconds_of(header: str | None) -> int | None:
    """The wait that a Retry-After names, as seconds or as a date: at least 1 and at most `MAX_WAIT_S`. None for what names none."""
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return min(max(int(header[:9]), 1), MAX_WAIT_S)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return min(max(math.ceil(seconds), 1), MAX_WAIT_S)


def parse(content: bytes) -> Mapping[str, Any]:
    """The error in a body, in any of the forms of OpenAI, Anthropic, FastAPI and llama-server."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return error_in(body) or (body if isinstance(body, dict) else {})


def error_in(body: Any) -> Mapping[str, Any] | None:
    """The error of an event or a body; None without one."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) and error else None


def stream_error(told: Mapping[str, Any], names: tuple[str, str]) -> UpstreamFailed:
    return Failed(message_of(told, names) or "the model's server failed", told=code_of(told))


def complaint_of(status: int, content: bytes) -> str | None:
    """What the log says of an answer that the operator has to know of; None for other ones. A code that is no plain word is left out, and
    so is the message: it may quote the prompt.
    """
    if status in KEY_REFUSED:
        return f"refuses the key of upstream_key ({status})"
    if status != FORBIDDEN and status < 500:
        return None
    code = code_of(parse(content))
    said = f", {code}" if code is not None and WORD.fullmatch(code) else ""
    return f"forbids a request ({status}{said}): its key may lack a right" if status == FORBIDDEN else f"fails ({status}{said})"


def message_of(told: Mapping[str, Any], names: tuple[str, str]) -> str:
    """With the model's name here in the place of that there."""
    message = told.get("message", told.get("detail"))
    text = message if isinstance(message, str) else json.dumps(message) if message else ""
    there, here = names
    return re.sub(rf"(?<![\w./-]){re.escape(there)}(?![\w-])", lambda _: here, text[:MAX_MESSAGE])


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def code_of(told: Mapping[str, Any]) -> str | None:
    """Its code, where that is a word; llama-server has the status there and the word in `type`."""
    return next((value[:64] for value in (told.get("code"), told.get("type")) if isinstance(value, str) and value), None)
