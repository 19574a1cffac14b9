"""What raw connections send and get where uvicorn's HTTP is not the standard's: upgrades, HTTP/1.0, long heads, no Host."""

import socket
from collections.abc import Iterator

import pytest
from connecting import GET, Running, answer, read_all, running

from serve.admission.protocol import MAX_HEAD_BYTES

PATH = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nX-Empty:\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
TLS = b"Connection: upgrade\r\nUpgrade: TLS/1.2\r\n"
SIZED = b"Content-Length: 7\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.mark.parametrize("upgrade", [H2C, TLS])
@pytest.mark.parametrize(
    "packets",
    [
        [PATH + b"%s" + SIZED + b'{"a":1}'],
        [PATH + b"%s" + SIZED, b'{"a":1}'],
        [PATH + b"%s" + SIZED + b'{"a"', b":1}"],
        [PATH[:30], PATH[30:] + b"%s" + SIZED[:-2], SIZED[-2:] + b'{"a":1}'],
        [PATH + b"%s" + CHUNKED + b'4\r\n{"a"\r\n3\r\n:1}\r\n0\r\n\r\n'],
        [PATH + b"%s" + CHUNKED, b'4\r\n{"a"\r\n', b"3\r\n:1}\r\n0\r\n\r\n"],
    ],
)
def test_an_upgrade_that_there_is_not_is_ignored(shared: Running, upgrade: bytes, packets: list[bytes]) -> None:
    with shared.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for packet in packets:
                client.sendall(packet.replace(b"%s", upgrade))
            received = answer(client)
            assert received.startswith(b"HTTP/1.1 200") and b'7\r\n{"a":1}\r\n' in received
        client.sendall(GET)
        assert b" 200 OK" in answer(client)


def test_many_in_one_packet_are_answered_in_turn(shared: Running) -> None:
    request = PATH + H2C + SIZED + b'{"a":1}'
    with shared.connect(request * 3 + GET.replace(b"\r\n\r\n", b"\r\n" + H2C + b"Connection: close\r\n\r\n")) as client:
        received = read_all(client)
    assert received.count(b"HTTP/1.1 200 OK") == 4 and received.count(b'{"a":1}') == 3


def test_a_websocket_is_still_one(shared: Running) -> None:
    head = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    with shared.connect(head) as client:
        assert not client.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"])
def test_http_1_0_gets_no_chunks(shared: Running, request_line: bytes) -> None:
    with shared.connect(request_line) as client:
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert b"connection: close" in head and b"transfer-encoding" not in head and body == b""
    with shared.connect(PATH.replace(b"1.1", b"1.0") + SIZED + b'{"a":1}') as client:
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and body == b'{"a":1}'


def test_a_stream_to_http_1_0_has_many_pieces_and_no_chunks(shared: Running) -> None:
    with shared.connect(b"GET /endless HTTP/1.0\r\n\r\n") as client:
        data = b""
        while len(data) < 200_000:
            data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and body == bytes(len(body))


def test_a_refusal_of_http_1_0_keeps_its_length(shared: Running) -> None:
    shared.work.in_flight = 1
    try:
        with shared.connect(PATH.replace(b"1.1", b"1.0") + SIZED + b'{"a":1}') as client:
            head, _, body = read_all(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429") and b"content-length: %d" % len(body) in head
    finally:
        shared.work.in_flight = 0


@pytest.mark.parametrize("hosts", [b"", b"Host: x\r\nHost: y\r\n"])
def test_http_1_1_has_one_host(shared: Running, hosts: bytes) -> None:
    with shared.connect(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n") as client:
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and body == b"a request of HTTP/1.1 needs one header Host"


@pytest.mark.parametrize("rest", [SIZED + b'{"a":1}', CHUNKED, b"Content-Length: 0\r\n\r\n"])
def test_a_long_head_is_refused_however_it_comes(shared: Running, rest: bytes) -> None:
    long = b"X-Long: " + b"a" * (MAX_HEAD_BYTES - 300)
    for head, status in ((long, b"200"), (long + b"a" * 300, b"431"), (long + b"\r\nX: " + b"a" * 300, b"431")):
        with shared.connect(PATH + head + b"\r\nConnection: close\r\n" + rest + (b"0\r\n\r\n" if rest == CHUNKED else b"")) as client:
            assert read_all(client).startswith(b"HTTP/1.1 " + status)
