"""HTTP where uvicorn's differs from the standard: upgrades that there are not are ignored, HTTP/1.0 gets no chunks, a head is bounded and
has a Host. Knows no time and no other connection.
"""

from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024  # of a request line with its headers, and of what frames a body: chunk sizes and trailers
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
HOSTLESS = b"a request of HTTP/1.1 needs one header Host"
NO_HOST = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (
    len(HOSTLESS),
    HOSTLESS,
)


class Parser(httptools.HttpRequestParser):
    """Reads on where a request asks for an upgrade that the server ignores, as RFC 9110, 7.8 lets it: Java's client asks for HTTP/2.

    httptools takes all that follows such a head, also the body, for another protocol.
    """

    def __init__(self, protocol: "Protocol") -> None:
        super().__init__(protocol)
        self.protocol = protocol
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    def feed_data(self, data: Any) -> None:
        """Raises `httptools.HttpParserError`, and `HttpParserUpgrade` for a WebSocket."""
        parser, rest = self, memoryview(data)
        while rest:
            try:
                super(Parser, parser).feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self.protocol.head_again:
                    raise
                parser = self.protocol.parser = Parser(self.protocol)  # this one is at its end where the head says `Connection: close`
                super(Parser, parser).feed_data(self.protocol.head_again)
                rest = rest[upgrade.args[0] :]


class Protocol(HttpToolsProtocol):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.parser = Parser(self)
        self.head_again = b""  # of a request whose upgrade is ignored: its head without that
        self.refusal = b""  # the answer to a head that is not taken

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_again = b""

    def on_headers_complete(self) -> None:
        self.refusal = self._refusal()
        if self.refusal:
            raise httptools.HttpParserError("the head is not taken")  # uvicorn answers with `send_400_response`
        if self.parser.should_upgrade() and self._ignores_upgrade():
            self.head_again = self._head(without=b"upgrade")
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.head_again:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.refusal:
            super().send_400_response(msg)
            return
        self.transport.write(self.refusal)
        self.transport.close()

    def _refusal(self) -> bytes:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            return TOO_LARGE
        hosts = sum(name == b"host" for name, _ in self.headers)
        return NO_HOST if hosts != 1 and self.parser.get_http_version() == "1.1" else b""

    def _ignores_upgrade(self) -> bool:
        return not self._should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)

    def _head(self, without: bytes) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != without]
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, unchunked(app, cycle) if cycle.scope["http_version"] == "1.0" else app)


def unchunked(app: ASGIApp, cycle: RequestResponseCycle) -> Any:
    """For HTTP/1.0, which knows no chunks (RFC 9112, 6.1): an answer of unknown length ends with its connection."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        has_length = False

        async def send_plainly(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = None if has_length else False
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plainly)

    return run
