"""Which Host and Origin are let in."""

import pytest

from app.neighbours import Neighbours

OURS = Neighbours(("litmus.example.org",), ("https://page.example",))


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "10.1.2.3", "litmus.example.org:443", ""],
)
def test_own_names_and_addresses_are_hosts(host: str) -> None:
    assert OURS.allows_host(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "xlitmus.example.org", "127.0.0.1.evil.example", "127.1"],
)
def test_other_names_are_not(host: str) -> None:
    assert not OURS.allows_host(host)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "Localhost:8000", True),
        ("https://page.example", "127.0.0.1:8000", True),
        ("https://litmus.example.org", "127.0.0.1:8000", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("https://page.example:8443", "127.0.0.1:8000", False),
        ("http://evil.example", "127.0.0.1:8000", False),
        ("null", "null", False),
        ("file://", "", False),
        ("http://[", "127.0.0.1:8000", False),
    ],
)
def test_origins(origin: str | None, host: str, allowed: bool) -> None:
    assert OURS.allows_origin(origin, host) is allowed


def test_a_star_allows_every_origin_and_no_other_host() -> None:
    every = Neighbours((), ("*",))
    assert every.allows_origin("null", "127.0.0.1") and every.allows_origin("http://evil.example", "127.0.0.1")
    assert not every.allows_host("evil.example")
