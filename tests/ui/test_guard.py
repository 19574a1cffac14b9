"""The page's login and its walls, without a browser: what a stranger reaches, and what an attacker may send to Gradio."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.testclient import TestClient

from app.neighbours import Neighbours
from tests.ui.fakelitmus import KEY, Fake
from ui.calls import MAX_BYTES, is_plain
from ui.chat.sampling import Form
from ui.client import ServerError
from ui.guard import USED, Guard
from ui.page import mount
from ui.visitors import IDLE_S, MAX_LOGINS, Visitors

URL = "http://127.0.0.1:8000"
JOIN, RUN = "/ui/gradio_api/queue/join", "/ui/gradio_api/run/predict"
SETTINGS = len(fields(Form))


@pytest.fixture(scope="module")
def visitors(fake_server: Fake) -> Visitors:
    return Visitors(fake_server.url, login=None)


@pytest.fixture(scope="module")
def app(visitors: Visitors) -> FastAPI:
    return mount(FastAPI(), visitors, Neighbours())


@pytest.fixture
def page(app: FastAPI, fake: Fake) -> Iterator[TestClient]:
    """A browser of somebody new, before a server that has keys."""
    fake.keys = [KEY]
    with TestClient(app, URL) as client:
        yield client


def log_in(page: TestClient, key: str = KEY) -> Any:
    return page.post("/ui/login", data={"key": key})


def call(page: TestClient, content: object) -> Any:
    """Calls `send_question` with one chat message of this content in the place of a text."""
    html = page.get("/ui/").text
    config = json.JSONDecoder().raw_decode(html.partition("window.gradio_config = ")[2])[0]
    function = next(item["id"] for item in config["dependencies"] if len(item["inputs"]) == 5 + SETTINGS and not item["queue"])
    message = {"role": "user", "content": [content], "metadata": None, "options": None}
    return page.post(RUN, json={"data": [[message], "", "hello", "", "", *[""] * SETTINGS], "fn_index": function, "session_hash": "abc"})


def test_a_stranger_sees_the_login_and_nothing_of_gradio(page: TestClient):
    answer = page.get("/ui/")
    assert str(answer.url) == f"{URL}/ui/login" and "gradio" not in answer.text
    for method, path in (
        ("POST", JOIN),
        ("POST", RUN),
        ("GET", "/ui/gradio_api/queue/data"),
        ("GET", "/ui/theme.css"),
        ("POST", "/ui/gradio_api/cancel"),
    ):
        answer = page.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["detail"]) == (401, "Your login has ended. Reload the page to log in again.")


def test_a_key_that_the_server_takes_opens_the_page_until_the_visitor_leaves(page: TestClient, visitors: Visitors):
    refused = log_in(page, "<b>wrong</b>")
    assert refused.status_code == 401 and "not one of this server&#x27;s keys" in refused.text and "wrong" not in refused.text
    assert log_in(page, " ").status_code == 400 and not page.cookies
    answer = log_in(page)
    assert (answer.status_code, str(answer.url)) == (200, f"{URL}/ui/") and "gradio_config" in answer.text
    cookie = answer.history[0].headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/ui")) and KEY not in cookie and "Secure" not in cookie
    assert call(page, {"type": "text", "text": "x"}).status_code == 200
    token = dict(page.cookies)
    assert str(page.get("/ui/logout").url) == f"{URL}/ui/login"
    page.cookies.update(token)
    assert page.get("/ui/theme.css").status_code == 401


def test_what_makes_the_page_an_app_is_open_and_says_nothing_of_the_server(page: TestClient):
    manifest = page.get("/ui/manifest.json")
    assert (manifest.status_code, manifest.json()["start_url"]) == (200, "./") and KEY not in manifest.text
    for path in ("icon.svg", "favicon.ico"):
        assert page.get(f"/ui/{path}").headers["content-type"] == "image/svg+xml"
    assert page.post("/ui/icon.svg").status_code == 404


def test_the_cookie_is_secure_behind_tls(page: TestClient):
    answer = page.post("/ui/login", data={"key": KEY}, headers={"X-Forwarded-Proto": "https"}, follow_redirects=False)
    assert "Secure" in answer.headers["set-cookie"]


def test_a_server_without_keys_needs_no_login(fake: Fake):
    with TestClient(mount(FastAPI(), Visitors(fake.url, login=None)), URL) as client:
        assert "gradio_config" in client.get("/ui/").text


@pytest.mark.parametrize("headers", [{}, {"X-Forwarded-For": "203.0.113.9"}])
@pytest.mark.parametrize("setting", [False, None])
def test_where_no_key_is_wanted_nobody_logs_in(fake: Fake, setting: bool | None, headers: dict[str, str]):
    visitors = Visitors(fake.url, setting)
    client = TestClient(Guard(FastAPI(), visitors), URL, client=("203.0.113.9", 4711))
    answer = client.post("/login", data={"key": "made-up"}, headers=headers, follow_redirects=False)
    assert (answer.status_code, "Nobody logs in here" in answer.text, dict(answer.cookies)) == (401, True, {})
    assert visitors._logins == {}


def test_a_page_of_its_own_asks_again_whether_its_server_wants_keys(fake: Fake):
    visitors = Visitors(fake.url, None)
    assert not asyncio.run(visitors.need_login())
    fake.keys = [KEY]
    token = asyncio.run(visitors.log_in(KEY))
    assert asyncio.run(visitors.need_login()) and visitors.client(visit(token)).key == KEY
    fake.keys = []
    with pytest.raises(ServerError, match="Nobody logs in here"):
        asyncio.run(visitors.log_in("made-up"))
    assert not asyncio.run(visitors.need_login())


def test_an_open_page_may_ask_whether_its_server_was_started_again(page: TestClient):
    assert page.get("/ui/gradio_api/app_id").status_code == 401
    log_in(page)
    assert page.get("/ui/gradio_api/app_id").json().keys() == {"app_id"}


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file/etc/passwd",
        "gradio_api/proxy=http://127.0.0.1:9/",
        "gradio_api/upload_progress?upload_id=1",
        "gradio_api/info",
        "gradio_api/openapi.json",
        "gradio_api/runs",
        "gradio_api/deep_link",
        "gradio_api/user",
        "gradio_api/token",
        "config",
        "monitoring",
        "monitoring/summary",
        "dev/reload",
        "svelte/svelte.js",
        "static/%2e%2e/%2e%2e/package.json",
        "static/..%2f..%2fpackage.json",
        "static//etc/passwd",
    ],
)
def test_what_the_page_does_not_use_is_closed(page: TestClient, path: str):
    log_in(page)
    answer = page.get(f"/ui/{path}")
    error = {"message": "the page has no such route", "type": "invalid_request_error", "param": None, "code": "not_found"}
    assert (answer.status_code, answer.json()) == (404, {"error": error})


@pytest.mark.parametrize(
    "path", ["upload", "component_server", "run/add_question", "call/add_question", "api/predict", "vibe-edit", "process_recording"]
)
def test_gradios_api_and_uploads_are_closed(page: TestClient, path: str):
    log_in(page)
    assert page.post(f"/ui/gradio_api/{path}", files={"files": b"x"}).status_code == 404


FILE = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "content",
    [
        {"type": "file", "file": FILE, "alt_text": None},
        {"type": "file", "file": {**FILE, "path": "http://127.0.0.1:9/x"}},
        {"type": "component", "component": "image", "value": FILE, "constructor_args": {}, "props": {}},
        {"type": "component", "component": "html", "value": "<b>", "constructor_args": {"value": "x"}, "props": {}},
        {"type": "text", "text": "x", "path": "/etc/hostname"},
    ],
)
def test_a_message_names_no_file_address_or_component(page: TestClient, content: object):
    log_in(page)
    answer = call(page, content)
    assert (answer.status_code, answer.json()["detail"]) == (400, "A call of the page has texts and numbers only.")


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        (b'{"data": ["a", 1, null, [true]], "fn_index": 1, "session_hash": "x"}', True),
        (b'{"data": [], "event_data": {"index": 0, "value": ["x"]}}', True),
        (b'{"data": [], "event_data": {"index": 0, "value": "x", "selected": true}}', True),
        (b'{"data": [{"type": "component"}]}', False),
        (b'{"data": [[[[{"url": "x"}]]]]}', False),
        (b"[]", False),
        (b"{", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
)
def test_plain_calls(body: bytes, plain: bool):
    assert is_plain(body) is plain


def test_a_websocket_is_refused(visitors: Visitors):
    passed_on: list[Any] = []
    sent: list[Any] = []

    async def gradio_app(scope: Any, receive: Any, send: Any) -> None:
        passed_on.append(scope)

    async def connect() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(Guard(gradio_app, visitors)({"type": "websocket", "path": "/ui/", "headers": []}, connect, send))
    assert (passed_on, sent) == ([], ["websocket.close"])


def test_a_call_is_bounded(page: TestClient):
    log_in(page)
    assert page.post(JOIN, json={"data": ["x" * MAX_BYTES]}).status_code == 413
    assert page.post("/ui/login", data={"key": "x" * 5000}).status_code == 400


def test_every_file_of_the_frontend_may_be_asked_for():
    folder = Path(gradio.__file__).parent / "templates/frontend"
    files = [str(path.relative_to(folder)) for name in ("assets", "static") for path in (folder / name).rglob("*") if path.is_file()]
    assert len(files) > 100 and [file for file in files if not USED.fullmatch(f"GET /{file}")] == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example"}, 421), ({"Origin": "http://127.0.0.1:3000"}, 403), ({"Origin": URL}, 200)],
)
def test_other_sites_and_names_are_refused(page: TestClient, headers: dict[str, str], status: int):
    assert page.get("/ui/login", headers=headers).status_code == status


def test_every_answer_has_the_security_headers(page: TestClient):
    for path, policy in (("/ui/login", "form-action 'self'; frame-ancestors 'none'"), ("/ui/config", "frame-ancestors 'self'")):
        headers = page.get(path).headers
        assert headers["content-security-policy"].endswith(policy)
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")


def visit(token: str) -> Request:
    return Request({"type": "http", "server": ("127.0.0.1", 8000), "headers": [(b"cookie", f"litmus_login_8000={token}".encode())]})


def test_logins_end_when_idle_and_are_bounded(fake: Fake):
    now_s = 0.0
    visitors = Visitors(fake.url, True, clock=lambda: now_s)
    first, second = asyncio.run(visitors.log_in("one")), asyncio.run(visitors.log_in("two"))
    assert [visitors.client(visit(token)).key for token in (first, second, "guess")] == ["one", "two", None]
    now_s = IDLE_S
    assert visitors.is_logged_in(visit(first))
    now_s = IDLE_S + 1
    assert [visitors.is_logged_in(visit(token)) for token in (first, second)] == [True, False]
    for index in range(MAX_LOGINS):
        visitors._logins[str(index)] = visitors._logins[first]
    asyncio.run(visitors.log_in("last"))
    assert len(visitors._logins) == MAX_LOGINS and not visitors.is_logged_in(visit(first))


def test_the_page_calls_the_server_with_the_visitors_key(fake: Fake):
    fake.keys = [KEY, "other"]
    visitors = Visitors(fake.url, True)
    for key in (KEY, "other"):
        client = visitors.client(visit(asyncio.run(visitors.log_in(key))))
        asyncio.run(client.score("A fox.", None))
        assert fake.sent_keys[-1] == key and key not in repr(client)
    with pytest.raises(ServerError, match="needs a key"):
        asyncio.run(visitors.client(visit("guess")).models())


def test_a_page_with_a_key_of_its_own_asks_nobody(fake: Fake):
    fake.keys = [KEY]
    visitors = Visitors(fake.url, None, KEY)
    assert not asyncio.run(visitors.need_login())
    with pytest.raises(ServerError, match="Nobody logs in here"):
        asyncio.run(visitors.log_in(KEY))
    assert asyncio.run(visitors.client(visit("")).models())
