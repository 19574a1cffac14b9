"""HTTP by the standard library alone: a JSON body out, the answer's bytes as they come. Under gevent it waits cooperatively.

Each request has a connection of its own: servers differ in when they close one that is kept. Knows no model and no clock.
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

PIECE = 65536
BROKEN = (OSError, HTTPException)  # of a connection: refused, reset, timed out, cut short


@dataclass(frozen=True, slots=True)
class Host:
    """Where a server is. `path` stands before every route."""

    url: str
    timeout_s: float = 600.0

    def connection(self) -> tuple[HTTPConnection, str]:
        parts = urlsplit(self.url)
        if parts.hostname is None:
            raise OSError(f"{self.url!r} names no host")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname, parts.port, timeout=self.timeout_s), parts.path.rstrip("/")

    @contextmanager
    def post(self, route: str, body: bytes) -> Iterator[HTTPResponse]:
        """The answer, its body unread. Leaving the block closes the connection, read or not. Raises `BROKEN`."""
        connection, path = self.connection()
        try:
            connection.request("POST", path + route, body, {"Content-Type": "application/json", "Connection": "close"})
            yield connection.getresponse()
        finally:
            connection.close()

    def get(self, route: str) -> tuple[int, bytes]:
        """Status and body. Raises `BROKEN`."""
        connection, path = self.connection()
        try:
            connection.request("GET", path + route, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def pieces(response: HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives, with chunked encoding or without. Raises `BROKEN` where it is cut short."""
    while piece := response.read1(PIECE):
        yield piece


def encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None where there is none, or none that can be read."""
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
