import socket
import threading
from datetime import UTC, datetime

import pytest

from loadtest.load.transport import CONNECTION_ERRORS, Host, body_chunks, encode, retry_after_s

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2),
        ("0.5", 0.5),
        ("-3", 0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("soon", None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_s(value, NOW) == seconds


@pytest.fixture
def serve_once():
    """Starts a server that accepts one connection, sends the given parts and hangs up. It waits until a part of the body has arrived.

    Yields a function of the parts, which returns the host, the request, and what tells that a chunk has arrived.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    threads, arrived = [], threading.Semaphore(0)

    def serve(parts, requests):
        connection, _ = listener.accept()
        with connection:
            requests.append(connection.recv(65536))
            while not requests[0].endswith(b"}"):
                requests[0] += connection.recv(65536)
            for number, part in enumerate(parts):
                assert number < 2 or arrived.acquire(timeout=60)
                connection.sendall(part)

    def begin(*parts):
        requests = []
        thread = threading.Thread(target=serve, args=(parts, requests))
        threads.append(thread)
        thread.start()
        return Host(f"http://127.0.0.1:{listener.getsockname()[1]}/base", timeout_s=60), requests, arrived.release

    yield begin
    for thread in threads:
        thread.join(timeout=60)
    listener.close()


def read(response, arrived):
    found = []
    for chunk in body_chunks(response):
        found.append(chunk)
        arrived()
    return found


def test_chunks_arrive_as_they_are_sent(serve_once):
    host, requests, arrived = serve_once(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n"
    )
    with host.post("/v1/x", encode({"a": "é"})) as response:
        assert (response.status, read(response, arrived)) == (200, [b"abc", b"de"])
    assert requests[0].startswith(b"POST /base/v1/x HTTP/1.1") and requests[0].endswith(b'{"a": "\\u00e9"}')


def test_without_chunks_too(serve_once):
    host, _, arrived = serve_once(b"HTTP/1.0 200 OK\r\n\r\n", b"abc", b"de")
    with host.post("/", b"{}") as response:
        assert read(response, arrived) == [b"abc", b"de"]


def test_a_body_that_is_cut_short_raises(serve_once):
    host, *_ = serve_once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"ff\r\nabc")
    with host.post("/", b"{}") as response, pytest.raises(CONNECTION_ERRORS):
        list(body_chunks(response))


def test_no_server(free_port):
    with pytest.raises(CONNECTION_ERRORS):
        Host(f"http://127.0.0.1:{free_port}").get("/")


@pytest.mark.parametrize("url", ["127.0.0.1:8231", "localhost:8231", "ftp://localhost:8231", "http://"])
def test_a_url_without_scheme_or_host_is_refused(url):
    with pytest.raises(ValueError, match=f"{url}.* http://host:port"):
        Host(url)
