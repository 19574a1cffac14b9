"""All errors that Litmus raises deliberately, as one class tree. Each class has its HTTP status and OpenAI error type.

Knows no HTTP framework: `serve` turns these errors into responses, the engine into events.
"""


class LitmusError(Exception):
    """Base class. `param` is the request field that caused the error; `code` is stable, so that a program can compare it."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.param, self.code)

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(LitmusError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class UnknownModel(InvalidRequest):
    status, code = 404, "model_not_found"


class NotFound(InvalidRequest):
    status, code = 404, "not_found"


class Conflict(InvalidRequest):
    """What is asked for cannot be done in the present state of the server."""

    status, code = 409, "conflict"


class Unauthorized(LitmusError):
    """The request has no key, or one that is not known."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(LitmusError):
    status, type, code = 403, "permission_error", "forbidden"


class Misdirected(InvalidRequest):
    """The header Host names a server that this one is not."""

    status, code = 421, "wrong_host"


class BodyTooSlow(InvalidRequest):
    status, code = 408, "body_too_slow"


class BodyTooLarge(InvalidRequest):
    status, code = 413, "body_too_large"


class RangeBeyondEnd(InvalidRequest):
    status, code = 416, "range_not_satisfiable"


class UnsupportedMediaType(InvalidRequest):
    status, code = 415, "unsupported_media_type"


class QueueFull(LitmusError):
    status, type, code = 429, "rate_limit_error", "queue_full"


class RateLimited(LitmusError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class NotReady(LitmusError):
    status, type, code = 503, "service_unavailable", "not_ready"


class WorkerDied(LitmusError):
    status, type, code = 503, "service_unavailable", "worker_died"


class UpstreamFailed(LitmusError):
    """The server that answers for the model could not be reached, failed, or broke off its answer."""

    status, type, code = 503, "service_unavailable", "upstream_failed"


class StorageFull(LitmusError):
    """The server could not write what was sent to its disk."""

    status, code = 507, "storage_full"


class DeadlineExceeded(LitmusError):
    status, type, code = 408, "timeout_error", "deadline_exceeded"


class EngineFailed(LitmusError):
    code = "engine_failed"


class SetupError(LitmusError):
    """Litmus cannot start with these settings. Raised before any request is served; the process exits with code 2."""

    code = "setup"


class UnsupportedModel(SetupError):
    """The engine cannot serve this architecture correctly, so it refuses to load it."""

    code = "unsupported_model"


def _rebuild(cls: type[LitmusError], message: str, param: str | None, code: str) -> LitmusError:
    """Unpickles an error: workers send errors to the API process."""
    return cls(message, param=param, code=code)


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
