"""What is let in without keys: this machine, its own pages, and the names that the settings add."""

from pathlib import Path

import pytest
from admitting import ALICE, CHAT, HELLO, bearer, serving
from fastapi.testclient import TestClient


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 421, "wrong_host"),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 421, "wrong_host"),
        ({"Origin": "http://evil.example"}, 403, "foreign_origin"),
        ({"Origin": "null"}, 403, "foreign_origin"),
        ({"Origin": "http://127.0.0.1:3000"}, 403, "foreign_origin"),
        ({"Origin": "http://127.0.0.1:8000"}, 200, None),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200, None),
        ({}, 200, None),
    ],
)
def test_on_this_machine_only_its_own_pages_are_let_in(alone: TestClient, headers: dict[str, str], status: int, code: str | None) -> None:
    answer = alone.post(CHAT, json=HELLO, headers=headers)
    assert (answer.status_code, answer.json().get("error", {}).get("code")) == (status, code)


def test_further_names_and_pages_are_let_in_by_settings(tiny_folder: Path) -> None:
    with serving(tiny_folder, hosts=("litmus.example.org",), cors_origins=("https://page.example",)) as client:
        for headers in (
            {"Host": "litmus.example.org", "Origin": "https://litmus.example.org"},
            {"Host": "127.0.0.1", "Origin": "https://litmus.example.org"},
            {"Host": "127.0.0.1", "Origin": "https://page.example"},
        ):
            assert client.post(CHAT, json=HELLO, headers=headers).status_code == 200
        assert client.get("/health", headers={"Host": "example.org"}).status_code == 421


def test_with_keys_or_beyond_this_machine_any_host_reaches_the_api(
    guarded: TestClient, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = {"Host": "gpu.example", "Origin": "http://elsewhere.example"}
    assert guarded.post(CHAT, json=HELLO, headers=bearer(ALICE) | elsewhere).status_code == 200
    assert guarded.get("/ui/", headers=elsewhere).status_code == 403  # the page has a cookie
    assert "no keys" not in caplog.text
    with serving(tiny_folder, host="0.0.0.0") as client:
        assert client.post(CHAT, json=HELLO, headers={"Host": "gpu.example"}).status_code == 200
        assert client.post(CHAT, json=HELLO, headers=elsewhere).status_code == 403
    assert "the server listens on 0.0.0.0 and has no keys" in caplog.text


@pytest.mark.parametrize(
    ("client", "headers", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("127.0.0.1", {"Origin": "http://127.0.0.1:8000"}, True),
        ("127.0.0.1", {"Origin": "https://page.example"}, False),  # it may call the API, but not change the server
        ("127.0.0.1", {"Host": "rebound.example"}, False),
        ("::ffff:127.0.0.1", {}, True),
        ("127.0.0.1", {"X-Forwarded-For": "10.0.0.7"}, False),  # by a proxy on this machine
        ("127.0.0.1", {"Forwarded": "for=10.0.0.7"}, False),
        ("127.0.0.1", {"X-Real-IP": "10.0.0.7"}, False),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, False),
        ("127.0.0.1", {"X-Forwarded-Host": "litmus.example"}, False),
        ("127.0.0.1", {"Via": "1.1 proxy"}, False),
        ("10.0.0.7", {}, False),
        ("testclient", {}, False),
    ],
)
def test_without_keys_only_this_machine_is_an_administrator(tiny_folder: Path, client: str, headers: dict[str, str], allowed: bool) -> None:
    with serving(tiny_folder, host="0.0.0.0", cors_origins=("https://page.example",)) as http:
        caller = TestClient(http.app, "http://127.0.0.1:8000", client=(client, 1))
        for path in ("/admin/models", "/admin/models/x", "/admin", "/v1/load_lora_adapter", "/v1/unload_lora_adapter/"):
            answer = caller.get(path, headers=headers)
            assert answer.status_code == (404 if allowed else 403), (path, answer.text)
        assert caller.get("/slots").status_code == 200
    assert allowed or answer.json()["error"]["code"] == "admin_only"
