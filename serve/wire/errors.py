"""The answer to an error, in the form that the clients of its route read: OpenAI's, or Anthropic's under /v1/messages."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from fastapi.responses import JSONResponse

from app.errors import LitmusError
from serve.observe.record import current_id, note_error

MESSAGES = "/v1/messages"
MESSAGES_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def is_messages(path: str) -> bool:
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def error_body(error: LitmusError, path: str, request_id: str | None = None) -> dict[str, object]:
    return messages_error(error, request_id) if is_messages(path) else {**error.envelope()}


def messages_error(error: LitmusError, request_id: str | None) -> dict[str, object]:
    kind = MESSAGES_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


class ErrorJSON(JSONResponse):
    """JSON in ASCII: a message may quote a lone surrogate, which UTF-8 cannot encode."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def error_response(error: LitmusError, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> JSONResponse:
    """`path` is that of the request: clients of different routes read errors in different forms."""
    note_error(error.code)
    retry = {"Retry-After": "1"} if error.status in {429, 503} else {}
    return ErrorJSON(error_body(error, path, current_id()), error.status, {**retry, **headers})
