"""One request and its response over a socket of their own, without an HTTP client that would refuse to send what is wrong."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from loadtest.chaos.malformed import Shot

RAW_WAIT_S = 0.3  # for an answer to bytes that may not be a request
READ_BYTES = 65_536
SILENT, CLOSED = "silent", "closed"


@dataclass(frozen=True, slots=True)
class Response:
    """`status` 0: there was none. `late`: the time was over before its end."""

    status: int = 0
    body: bytes = b""
    late: bool = False

    @property
    def said(self) -> str:
        return str(self.status) if self.status else SILENT if self.late else CLOSED


def request_bytes(made: Shot) -> bytes:
    """The request as HTTP/1.1; characters outside Latin-1 go out as UTF-8."""
    headers = {"Host": "127.0.0.1", "Connection": "close", **made.headers, "Content-Length": str(len(made.body))}
    lines = [f"{made.method} {made.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + made.body


async def exchange(port: int, request: bytes, is_head: bool, deadline_s: float) -> Response:
    """Send a request and read its response to the end."""
    received = bytearray()
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await _write(writer, request)
                while not is_whole(bytes(received), is_head) and (chunk := await reader.read(READ_BYTES)):
                    received += chunk
            finally:
                writer.close()
    except TimeoutError:
        return Response(late=True)
    except OSError:
        pass  # closed while it sent or read: what has arrived counts
    return response_of(bytes(received))


async def send_raw(port: int, data: bytes) -> Response:
    """Send bytes and take what comes back within a moment."""
    received = bytearray()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(RAW_WAIT_S):
                await _write(writer, data)
                while chunk := await reader.read(READ_BYTES):
                    received += chunk
        finally:
            writer.close()
    except TimeoutError:
        return response_of(bytes(received), late=True)
    except OSError:
        pass
    return response_of(bytes(received))


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """A server that has answered before it read everything may close: its answer is still read."""
    try:
        writer.write(data)
        await writer.drain()
    except ConnectionError:
        pass


def response_of(received: bytes, late: bool = False) -> Response:
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    is_response = head.startswith(b"HTTP/") and len(words) > 1 and words[1].isdigit()
    return Response(int(words[1]), body, late) if is_response else Response(0, late=late)


def is_whole(received: bytes, is_head: bool) -> bool:
    """Whether the response has all of its body; one without a length ends with its connection."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return False
    headers = headers_of(head)
    if is_head or head.split(b" ", 2)[1:2] in ([b"204"], [b"304"]):
        return True
    if "content-length" in headers:
        return len(body) >= int(headers["content-length"])
    return headers.get("transfer-encoding") == "chunked" and body.endswith(b"0\r\n\r\n")


def headers_of(head: bytes) -> Mapping[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
