"""The body of an error, in the form that the clients of its route read: OpenAI's, or Anthropic's under /v1/messages."""

from app.errors import LitmusError

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


def error_body(error: LitmusError, path: str) -> dict[str, object]:
    return messages_error(error) if path == MESSAGES or path.startswith(f"{MESSAGES}/") else {**error.envelope()}


def messages_error(error: LitmusError) -> dict[str, object]:
    kind = MESSAGES_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
