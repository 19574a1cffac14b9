"""HTTP with the standard library alone: sends a JSON body and yields the response's bytes as they arrive. Cooperative under gevent.

Each request has its own connection, because servers differ in when they close a kept one. Knows no model and no clock.
"""

import email.utils
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

CHUNK_BYTES = 65536
CONNECTION_ERRORS = (OSError, HTTPException)  # the connection was refused, reset, timed out or cut short


@dataclass(frozen=True, slots=True)
class Host:
    """A server by its base URL, whose path precedes every route. Raises ValueError for a URL without http(s):// or without a host."""

    url: str
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"The URL {self.url!r} does not begin with http:// or https://; write it as http://host:port")
        if urlsplit(self.url).hostname is None:
            raise ValueError(f"The URL {self.url!r} has no host; write it as http://host:port")

    def connection(self) -> tuple[HTTPConnection, str]:
        """A connection that is not open yet, and the path of the base URL."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection_class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return connection_class(parts.hostname, parts.port, timeout=self.timeout_s), parts.path.rstrip("/")

    @contextmanager
    def post(self, route: str, body: bytes) -> Iterator[HTTPResponse]:
        """The response, its body unread. Leaving the block closes the connection, even if bytes are unread. Raises `CONNECTION_ERRORS`."""
        connection, path = self.connection()
        try:
            connection.request("POST", path + route, body, {"Content-Type": "application/json", "Connection": "close"})
            yield connection.getresponse()
        finally:
            connection.close()

    def get(self, route: str) -> tuple[int, bytes]:
        """Status and body. Raises `CONNECTION_ERRORS`."""
        connection, path = self.connection()
        try:
            connection.request("GET", path + route, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def body_chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives, with chunked encoding or without. Raises `CONNECTION_ERRORS` if it is cut short."""
    while chunk := response.read1(CHUNK_BYTES):
        yield chunk


def encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None if it is absent or has another format."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
