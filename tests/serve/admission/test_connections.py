"""Raw connections to a uvicorn in a thread: late ones are closed, others are not, and their number is bounded."""

import asyncio
import re
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from connecting import GET, POST, Running, answer, closed, read_all, running
from serving import wait_for
from starlette.types import Receive, Scope, Send

from app.settings import ServerSettings
from serve.admission import connections as module
from serve.admission.connections import GRACE_S, allow_files, body_deadline_s, create_connections, uvicorn_options


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.mark.parametrize(
    ("sent", "stage", "allowed_s", "word"),
    [
        (b"", "request", 10, b""),
        (b"GET / HTT", "request", 10, b"HTTP/1.1 408 Request Timeout\r\n"),
        (GET[:-2], "request", 10, b"HTTP/1.1 408 Request Timeout\r\n"),
        (POST % 100 + b"{", "body", 30 + GRACE_S, b""),
    ],
)
def test_a_client_that_stops_sending_is_closed_in_time(shared: Running, sent: bytes, stage: str, allowed_s: float, word: bytes) -> None:
    with shared.connect(sent) as client:
        wait_for(lambda: shared.stages() == [stage])
        if sent:
            wait_for(lambda: all(connection.begun for connection in shared.connections._open))
        assert shared.after(allowed_s - 1) == 0
        assert shared.after(allowed_s + 1) == 1
        if word:
            assert read_all(client).startswith(word)
        else:
            assert closed(client)
    wait_for(lambda: shared.stages() == [])


def test_two_hundred_of_them_are_closed_at_once(shared: Running) -> None:
    clients = [shared.connect(POST % 100 + b"{") for _ in range(200)]
    wait_for(lambda: shared.stages() == ["body"] * 200)
    assert shared.after(36) == 200
    assert all(closed(client) for client in clients)
    wait_for(lambda: shared.stages() == [])
    for client in clients:
        client.close()


def test_an_idle_connection_is_closed_and_one_that_is_asked_again_is_not(shared: Running) -> None:
    with shared.connect(GET) as client:
        assert b" 200 OK" in answer(client)
        wait_for(lambda: shared.stages() == ["idle"])
        assert shared.after(74) == 0
        client.sendall(GET)
        assert b" 200 OK" in answer(client)
        wait_for(lambda: shared.stages() == ["idle"])
        assert shared.after(76) == 1 and closed(client)


def test_the_connection_of_a_refused_request_goes_on(shared: Running) -> None:
    """Also when its body was still on its way: it is read and dropped, so that the client sees the 429 and no reset."""
    body = bytes(3_000_000)
    shared.work.in_flight = 1
    try:
        with shared.connect(POST % len(body)) as client:
            refused = answer(client)
            assert refused.startswith(b"HTTP/1.1 429") and b"connection: close" not in refused
            wait_for(lambda: shared.stages() == ["body"])
            client.sendall(body)
            wait_for(lambda: shared.stages() == ["idle"])
            shared.work.in_flight = 0
            client.sendall(POST % 2 + b"{}")
            assert b" 200 OK" in answer(client)
            wait_for(lambda: shared.stages() == ["idle"])
        wait_for(lambda: shared.stages() == [])
    finally:
        shared.work.in_flight = 0


def test_a_refused_request_whose_body_never_ends_is_closed(shared: Running) -> None:
    shared.work.in_flight = 1
    try:
        with shared.connect(POST % 100 + b"{") as client:
            assert answer(client).startswith(b"HTTP/1.1 429")
            assert shared.after(30 + GRACE_S + 1) == 1 and closed(client)
    finally:
        shared.work.in_flight = 0


@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_headers_without_end_are_refused(shared: Running, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=60) as client:
        client.sendall(head)
        answer = b""
        try:
            for _ in range(1000):
                client.sendall(b"a: b\r\n" * 1000 if head.endswith(b"\r\n") else b"a" * 6000)
            answer = client.recv(100)
        except OSError:  # closed while more was being sent
            answer = answer or client.recv(100)
    assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


def test_trailers_without_end_are_refused(shared: Running) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    with socket.create_connection(("127.0.0.1", shared.port), timeout=60) as client, pytest.raises(OSError, match="reset|Broken pipe"):
        client.sendall(head)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            client.sendall(b"a: b\r\n" * 1000)
            time.sleep(0.001)


def test_requests_in_one_packet_are_answered_in_turn(shared: Running) -> None:
    with shared.connect(GET + POST % 2 + b"{}" + GET) as client:
        data = b""
        while data.count(b"HTTP/1.1 200 OK") < 3 or not data.endswith(b"0\r\n\r\n"):
            data += client.recv(65536)
        assert b"{}" in data
        wait_for(lambda: shared.stages() == ["idle"])


def test_a_slow_body_is_a_408_in_the_form_of_its_route() -> None:
    with running(body_timeout_s=0.2) as server:
        for path, start in ((b"/v1/completions", b'{"error": {"message"'), (b"/v1/messages", b'{"type": "error"')):
            with server.connect((POST % 100).replace(b"/v1/completions", path) + b"{") as client:
                head, _, body = read_all(client).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 408") and b"connection: close" in head
                assert body.startswith(start) and re.search(rb"1 bytes of the body came in \d+ s", body)


def test_a_body_may_take_longer_while_it_is_fast_enough() -> None:
    assert [body_deadline_s(size, 30) for size in (0, 30_000, 60_000, 2_000_000)] == [30, 30, 60, 2000]
    with running(body_timeout_s=0.1) as server, server.connect(POST % 90_000 + b"x" * 60_000) as client:
        time.sleep(0.2)  # of the 60 s that so much may take
        client.sendall(b"x" * 30_000)
        assert b" 200 OK" in answer(client)


def test_a_client_that_never_reads_is_closed_and_its_application_hears_of_it() -> None:
    with running() as server, server.connect(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"):
        server.wait_stalled()
        assert server.after(59) == 0 and server.application.ended == []
        assert server.after(61) == 1
        wait_for(lambda: server.application.ended == ["disconnected"])


def test_a_client_that_reads_slowly_is_not_closed() -> None:
    with running() as server, server.connect(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        for _ in range(3):
            server.wait_stalled()
            for _ in range(100):  # more than the client's side takes back without telling
                client.recv(65536)
            time.sleep(0.05)
            assert server.after(61) == 0
        assert server.application.ended == []


def test_beyond_the_bound_the_oldest_idle_connection_gives_way_and_without_one_the_new_connection_is_refused() -> None:
    with running(max_connections=8) as server:
        clients = [server.connect(GET) for _ in range(8)]
        for client in clients:
            assert b" 200 OK" in answer(client)
        wait_for(lambda: server.stages() == ["idle"] * 8)
        oldest = next(iter(server.connections._idle)).client
        with server.connect(GET) as ninth:
            assert b" 200 OK" in answer(ninth)
            (gone,) = [client for client in clients if client.getsockname() == oldest]
            assert closed(gone)
            others = [client for client in clients if client is not gone]
            for client in [*others, ninth]:
                client.sendall(b"GET ")  # begins another request, so none is idle
            wait_for(lambda: server.stages() == ["request"] * 8)
            with server.connect() as tenth:
                assert read_all(tenth).startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n")
            for client in [*others, ninth]:
                client.sendall(GET[4:])
                assert b" 200 OK" in answer(client)
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed", "set_to"),
    [
        (20_000, 20_000, 4096, 4096, None),
        (1024, 20_000, 4096, 4096, 4096 + module.FILES_BESIDE),
        (1024, 2048, 4096, 2048 - module.FILES_BESIDE, 2048),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, 4096, None),
        (1024, resource.RLIM_INFINITY, 4096, 4096, 4096 + module.FILES_BESIDE),
    ],
)
def test_the_bound_on_open_files_is_raised_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, allowed: int, set_to: int | None
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(module.resource, "setrlimit", lambda _, limits: calls.append(limits))
    assert allow_files(wanted) == allowed
    assert calls == ([] if set_to is None else [(set_to, hard)])


def test_forwarded_addresses_are_believed_from_trusted_proxies_only() -> None:
    def client_of(trusted: tuple[str, ...], peer: str, forwarded: str) -> str:
        seen: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["client"][0])

        settings = ServerSettings(trusted_proxies=trusted)
        config = uvicorn.Config(app, lifespan="off", interface="asgi3", **uvicorn_options(settings, create_connections(settings)))
        config.load()
        scope = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())], "scheme": "http"}
        asyncio.run(config.loaded_app(scope, None, None))
        return seen[0]

    assert client_of((), "127.0.0.1", "1.2.3.4") == "127.0.0.1"
    assert client_of(("10.0.0.0/8",), "10.1.1.1", "6.6.6.6, 1.2.3.4") == "1.2.3.4"  # what the proxy saw, not what its client claimed
    assert client_of(("10.0.0.0/8",), "9.9.9.9", "1.2.3.4") == "9.9.9.9"


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/8", "", "10.0.0.0/8,10.1.1.1"])
def test_a_proxy_that_could_never_match_or_would_let_everyone_claim_an_address_is_refused(proxy: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address or network: write 10.0.0.7, or 10.0.0.0/8 for a network"):
        ServerSettings(trusted_proxies=(proxy,))
