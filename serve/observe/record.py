"""What is noted of one HTTP request while it is served: for its line in the log, its metrics and its trace. No text, no path as sent."""

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

PRINTABLE = re.compile(rb"[\x20-\x7e]{1,128}")
REQUEST_ID = b"x-request-id"
CLIENT_LEFT = "client_left"  # code of what ended because nobody waited for it any more
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(slots=True)
class RequestRecord:
    id: str
    method: str
    start_s: float = field(default_factory=time.monotonic)
    route: str = "unmatched"  # the route's template, never the path itself
    status: int = 0  # of the answer; 0 until it begins
    code: str = ""  # of the error that was answered
    model: str = ""
    key: str = ""  # the name of the client's API key, set by what checks the keys
    jobs: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    ignored_fields: int = 0  # fields of the body that were left out
    span: Any = None  # of OpenTelemetry, where traces are on


RECORD: ContextVar[RequestRecord | None] = ContextVar("record", default=None)


def current_record() -> RequestRecord | None:
    """The record of the request that is being served; None outside of requests."""
    return RECORD.get()


def current_id() -> str | None:
    """The id of the request that is being served."""
    record = RECORD.get()
    return None if record is None else record.id


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's `X-Request-Id` if it is printable ASCII of up to 128 characters; otherwise a new id."""
    sent = next((value for name, value in headers if name == REQUEST_ID), b"")
    return sent.decode("ascii") if PRINTABLE.fullmatch(sent) else f"req-{uuid.uuid4().hex}"


def note_error(code: str) -> None:
    """Note the code of the error that the current request is answered with."""
    record = RECORD.get()
    if record is not None:
        record.code = code


def note_route(template: str) -> None:
    """Note the route of the current request where it is refused before a route is looked for."""
    record = RECORD.get()
    if record is not None:
        record.route = template


def note_ignored(fields: int) -> None:
    """Note how many fields of the current request's body were left out. Not their names: a name may be a text in the wrong place."""
    record = RECORD.get()
    if record is not None:
        record.ignored_fields = fields
