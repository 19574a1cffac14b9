"""The groups of settings of the server itself: where it listens, how many requests wait, what a client may take, what is kept."""

import os
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from app.settings.group import Filled, Group


def _network(text: str) -> str:
    """Accepts an IP address or a network: a name would never match, and `*` would let every client claim any address."""
    try:
        ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address or network: write 10.0.0.7, or 10.0.0.0/8 for a network ({error})") from None
    return text


def _address(host: object) -> object:
    return "127.0.0.1" if host == "localhost" else host


class ServerSettings(Group):
    host: Annotated[Literal["127.0.0.1", "0.0.0.0", "::"], BeforeValidator(_address)] = Field(
        "127.0.0.1",
        description="address to listen on: 127.0.0.1 or localhost, for this machine alone; 0.0.0.0 or ::, for every network it is in",
    )
    port: int = Field(8000, ge=1024, le=65535, description="port to listen on, 1024 to 65535")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="limit of a request body; a larger one is refused with 413")
    max_connections: int = Field(
        4096,
        ge=8,
        le=1_000_000,
        description="connections that may be open; beyond it the one that has been idle longest is closed, or the new one refused with 503",
    )
    header_timeout_s: float = Field(10, gt=0, le=3600, description="seconds that a client has to send request line and headers")
    body_timeout_s: float = Field(
        30, gt=0, le=3600, description="seconds that a client has to send a body, longer while 1 kB/s arrive; then it is refused with 408"
    )
    idle_timeout_s: float = Field(75, gt=0, le=3600, description="seconds that a connection stays open between two requests")
    write_timeout_s: float = Field(
        60, gt=0, le=3600, description="seconds without a byte that the client takes of its answer, after which the connection is closed"
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (),
        description="addresses or networks, such as 10.0.0.0/8, of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed",
    )
    drain_s: int = Field(30, ge=0, le=3600, description="seconds that requests in flight have to finish after SIGTERM")
    strict: bool = Field(
        False, description="refuse requests with fields that this server does not know, instead of leaving these out and saying so"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="level of the log on stderr")
    log_format: Literal["text", "json"] = Field("text", description="lines of text, or a JSON object a line")
    access_log: bool = Field(
        True, description="log a line for each request: route, status, duration, tokens; never a path as sent or a text"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenTelemetry collector that gets traces over HTTP, such as http://127.0.0.1:4318; when not set, "
        "OTEL_EXPORTER_OTLP_ENDPOINT of the environment; needs requirements-otel.txt",
    )

    @property
    def collector(self) -> str | None:
        """Where traces go: as the setting says, or OpenTelemetry's own variable."""
        return self.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


class QueueSettings(Group):
    max_waiting: int = Field(256, ge=1, description="answers and texts that may be in flight beyond the slots; more are refused with 429")
    resume_wait_s: float = Field(
        120, ge=0, description="seconds that a request whose model's process died waits for another process, which goes on with it"
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="deadline of a request that names none by timeout_s or X-Request-Timeout: it fails with 408; none when not set",
    )
    max_waiting_tokens: int = Field(
        1_000_000, ge=1024, description="tokens of the prompts and texts that may wait for a slot; more are refused with 429"
    )


class LimitSettings(Group):
    requests_per_minute: int | None = Field(
        None, ge=1, description="requests of one client, which is a key or an address, in a minute; no limit when not set"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens of prompts and answers of one client in a minute; no limit when not set"
    )
    concurrent_requests: int | None = Field(
        None, ge=1, description="requests of one client that this server works on at once; no limit when not set"
    )
    storage: str = Field(
        "memory://",
        pattern=r"^(memory://|rediss?://\S+)$",
        description="where the requests and tokens of the last minute are counted: memory://, or redis://host:6379 for several servers",
    )

    @property
    def are_set(self) -> bool:
        return any(limit is not None for limit in (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests))


class RetentionSettings(Group):
    folder: Filled | None = Field(None, description="keep requests and their answers in files in this folder; nothing is kept when not set")
    days: int = Field(30, ge=1, le=3650, description="days after which what was kept is deleted")
