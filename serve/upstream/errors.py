"""What an upstream says when it refuses or fails, as one of our errors. Knows no route."""

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx

from app.errors import LitmusError, UpstreamFailed

MAX_MESSAGE = 2000  # characters of what an upstream says
KEY_REFUSED = frozenset({401, 407})  # it is our key that it refuses, not that of our client
RATE_LIMITED = 429
NO_REASON = "the model's server refused the request and gave no reason"


class Passed(LitmusError):
    """A refusal by an upstream, with its status, its message and its field."""

    type, code = "invalid_request_error", "upstream_refused"

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.type = "rate_limit_error" if status == RATE_LIMITED else Passed.type
        self.headers = {} if retry_after is None else {"Retry-After": retry_after}


def refusal(response: httpx.Response, content: bytes, names: tuple[str, str]) -> LitmusError:
    """The error of an answer with a status of 300 or more. `names` are the model's there and here."""
    status = response.status_code
    if status < 400:
        return UpstreamFailed(f"the model's server answered with a redirect ({status}), which is not followed")
    if status in KEY_REFUSED:
        return UpstreamFailed(f"the model's server refused the key that this server has for it ({status})")
    told = parse(content)
    message = message_of(told, names)
    if status >= 500:
        return UpstreamFailed(f"the model's server failed ({status}){f': {message}' if message else ' and gave no reason'}")
    retry_after = response.headers.get("retry-after") if status == RATE_LIMITED else None
    return Passed(status, message or NO_REASON, param=_text(told.get("param")), code=_code(told), retry_after=retry_after)


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
    return UpstreamFailed(message_of(told, names) or "the model's server failed", code=_code(told) or "upstream_failed")


def message_of(told: Mapping[str, Any], names: tuple[str, str]) -> str:
    """With the model's name here in the place of that there."""
    message = told.get("message", told.get("detail"))
    text = message if isinstance(message, str) else json.dumps(message) if message else ""
    there, here = names
    return re.sub(rf"(?<![\w./-]){re.escape(there)}(?![\w-])", lambda _: here, text[:MAX_MESSAGE])


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _code(told: Mapping[str, Any]) -> str | None:
    """Its code, where that is a word; llama-server has the status there and the word in `type`."""
    return next((value[:64] for value in (told.get("code"), told.get("type")) if isinstance(value, str) and value), None)
