"""The body of a request, before any route sees it: read whole within its size and its time, and decompressed.

Which form of error a path has is known by `serve.wire.errors`.
"""

import asyncio
import zlib
from collections.abc import Callable
from email.message import Message

import brotli
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from app.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, LitmusError, UnsupportedMediaType
from serve.admission.connections import MIN_BODY_BYTES_PER_S, body_deadline_s
from serve.admission.gate import expects_word
from serve.wire.errors import error_response

UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
STREAMED = frozenset({"/v1/files", "/ui/jobs/files"})  # their routes read the body themselves, as it comes
MAX_ENCODINGS = 2  # each is undone while other requests wait
MAX_MEMBERS = 256  # of a body in gzip
MAX_LENGTH_DIGITS = 20  # of a Content-Length
MAX_READ_FACTOR = 16  # a body up to this many times the limit is read to its end: a client that is still sending would not see the 413


class RequestBody:
    """Reads the whole body before the application sees it, and decompresses it.

    Answers 413 itself when the body, compressed or not, is larger than `limit` bytes, 415 for a form that it cannot read, and 408 for one
    that takes longer than `timeout_s`, or than its size allows. A client that waits for `100 Continue` gets none where its header says that
    the body is too large, or where no route has its path and method.
    """

    def __init__(self, app: ASGIApp, limit: int, timeout_s: float) -> None:
        self.app = app
        self.limit = limit
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"} or scope["path"] in STREAMED:
            await self.app(scope, receive, send)
        elif self._is_refused_unread(scope):
            await error_response(self._too_large(), scope["path"], {"Connection": "close"})(scope, receive, send)
        elif expects_word(scope) and not _has_route(scope):
            await self.app(scope, replay(b"", receive), closing(send))
        else:
            await self._read(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks, size, more, clock = [], 0, True, asyncio.get_running_loop().time
        began = clock()
        while more and size <= self.limit * MAX_READ_FACTOR:
            try:
                async with asyncio.timeout_at(began + body_deadline_s(size, self.timeout_s)):
                    message = await receive()
            except TimeoutError:
                await too_slow(size, clock() - began, scope["path"])(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= self.limit:
                chunks.append(chunk)
        if size > self.limit:
            await error_response(self._too_large(), scope["path"])(scope, receive, send)
            return
        try:
            body = decode_body(b"".join(chunks), Headers(scope=scope), self.limit)
        except LitmusError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), send)

    def _is_refused_unread(self, scope: Scope) -> bool:
        length = Headers(scope=scope).get("content-length", "")
        limit = self.limit if expects_word(scope) else self.limit * MAX_READ_FACTOR
        return length.isdecimal() and int(length[:MAX_LENGTH_DIGITS]) > limit

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self.limit} bytes (server.max_body_bytes); send less at a time")


def _has_route(scope: Scope) -> bool:
    return any(route.matches(scope)[0] == Match.FULL for route in scope["app"].routes)


def too_slow(size: int, elapsed_s: float, path: str) -> JSONResponse:
    error = BodyTooSlow(
        f"{size} bytes of the body came in {elapsed_s:.0f} s; send it within server.body_timeout_s, or at {MIN_BODY_BYTES_PER_S} bytes/s"
    )
    return error_response(error, path, {"Connection": "close"})


def decode_body(body: bytes, headers: Headers, limit: int) -> bytes:
    """Undo the header Content-Encoding. Raises `UnsupportedMediaType`, `BodyTooLarge`, and `InvalidRequest` for damaged data."""
    charset = Message()
    charset["content-type"] = headers.get("content-type", "")
    if (charset.get_content_charset() or "utf-8") not in UTF_8:
        raise UnsupportedMediaType(f"the body is in {charset.get_content_charset()!r}; JSON must be in UTF-8")
    names = [part.strip().lower() for part in headers.get("content-encoding", "").split(",", MAX_ENCODINGS)]
    if len(names) > MAX_ENCODINGS:
        raise UnsupportedMediaType(f"the body has more than {MAX_ENCODINGS} Content-Encodings; use one")
    for name in reversed(names):
        name = "gzip" if name == "x-gzip" else name  # RFC 9110, 8.4.1.3
        if name in {"", "identity"}:
            continue
        if name not in DECOMPRESSORS:
            raise UnsupportedMediaType(f"the Content-Encoding {name[:40]!r} is not supported; {', '.join(DECOMPRESSORS)} are")
        try:
            body = DECOMPRESSORS[name](body, limit + 1)
        except (zlib.error, brotli.error, EOFError) as error:
            raise InvalidRequest(f"the body is not {name}, as its Content-Encoding says", code="invalid_encoding") from error
        if len(body) > limit:
            raise BodyTooLarge(f"the decompressed body is larger than {limit} bytes (server.max_body_bytes); send less at a time")
    return body


def _inflate(body: bytes, limit: int, window_bits: int, members: int = 1) -> bytes:
    """Decompress at most `limit` bytes. Raises `EOFError` where the data ends too early, or goes on after as many members."""
    text = b""
    for _ in range(members):
        decompressor = zlib.decompressobj(window_bits)
        text += decompressor.decompress(body, limit - len(text))
        body = decompressor.unused_data
        if len(text) >= limit or (decompressor.eof and not body):
            return text
    raise EOFError


def _deflate(body: bytes, limit: int) -> bytes:
    """With zlib's header, as the standard has it, or without, as some clients send it."""
    has_header = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return _inflate(body, limit, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _brotli(body: bytes, limit: int) -> bytes:
    decompressor = brotli.Decompressor()
    text: bytes = decompressor.process(body, output_buffer_limit=limit)
    while len(text) < limit and not decompressor.can_accept_more_data():
        text += decompressor.process(b"", output_buffer_limit=limit - len(text))
    if not decompressor.is_finished() and len(text) < limit:
        raise EOFError
    return text


DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": lambda body, limit: _inflate(body, limit, 16 + zlib.MAX_WBITS, MAX_MEMBERS),
    "deflate": _deflate,
    "br": _brotli,
}


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns `body` first, then what the original `receive` returns."""
    messages: list[ASGIMessage] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body_first() -> ASGIMessage:
        return messages.pop() if messages else await receive()

    return receive_body_first


def closing(send: Send) -> Send:
    """A `send` that ends the connection after the answer."""

    async def send_and_close(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
        await send(message)

    return send_and_close
