"""The whole of admission around the real routes: who is let in, what each answer says, and that nothing is opened or logged."""

import logging
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from admitting import ALICE, CHAT, HELLO, LINES, MESSAGES, ROOT, bearer, serving
from fakes import FACTS
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app.errors import SetupError
from app.settings import read
from serve.admission.keys import digest_of
from serve.server import create_server


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        (bearer(""), "missing_api_key"),
        ({"Authorization": f"Basic {ALICE}"}, "missing_api_key"),
        (bearer(ALICE[:-1]), "invalid_api_key"),
        (bearer(digest_of(ALICE).hex()), "invalid_api_key"),
        ({"x-api-key": "none"}, "invalid_api_key"),
    ],
)
def test_a_request_without_a_known_key_is_refused(guarded: TestClient, headers: dict[str, str], code: str) -> None:
    for method, path in (
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/nowhere"),
        ("GET", "/slots/"),
        ("OPTIONS", CHAT),
        ("POST", "/ready/x"),
    ):
        answer = guarded.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
        assert answer.headers["www-authenticate"] == 'Bearer realm="litmus"'
        assert not any(value.split()[-1] in answer.text for value in headers.values() if len(value) > 20)


@pytest.mark.parametrize(
    "headers", [bearer(ALICE), {"authorization": f"bearer  {ALICE} "}, {"x-api-key": ALICE}, {**bearer("none"), "x-api-key": ALICE}]
)
def test_a_key_is_sent_as_by_openai_or_anthropic(guarded: TestClient, headers: dict[str, str]) -> None:
    assert guarded.post(CHAT, json=HELLO, headers=headers).status_code == 200
    assert guarded.get("/client", headers=headers).json() == "alice"


def test_the_official_clients_send_it_and_know_the_refusals(guarded: TestClient) -> None:
    import anthropic  # here: it takes more than a second, in each process

    good = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=ALICE, http_client=guarded, max_retries=0)
    assert [model.id for model in good.models.list()] == [FACTS.name]
    with pytest.raises(openai.AuthenticationError, match="not one of this server's keys"):
        openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="wrong", http_client=guarded, max_retries=0).models.list()
    body: Any = {"model": FACTS.name, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
    client = anthropic.Anthropic(base_url="http://127.0.0.1:8000", api_key=ALICE, http_client=guarded, max_retries=0)
    assert client.messages.create(**body).role == "assistant"
    wrong = anthropic.Anthropic(base_url="http://127.0.0.1:8000", api_key="wrong", http_client=guarded, max_retries=0)
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        wrong.messages.create(**body)


@pytest.mark.parametrize("path", ["/slots", "/slots/", "/metrics/more", "/overview", "/admin/drain", "/v1/load_lora_adapter"])
def test_state_is_for_admins_only(guarded: TestClient, path: str) -> None:
    answer = guarded.get(path, headers=bearer(ALICE))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_only")
    assert guarded.get(path, headers=bearer(ROOT)).status_code == (404 if path.startswith(("/admin", "/v1")) else 200)


@pytest.mark.parametrize("path", ["/slots%0A", "/slots%0a/", "/metrics%0A", "/v1/chat/completions%0A", "/slots%00", "%0D/slots"])
def test_a_path_with_control_characters_is_no_path(guarded: TestClient, path: str) -> None:
    """Python's `$` in a route's pattern also matches before a line break at the end."""
    for key in (ALICE, ROOT):
        assert guarded.get(path, headers=bearer(key)).status_code == guarded.post(path, json=HELLO, headers=bearer(key)).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/", "/ping", "/v1/health", "/openapi.json", "/favicon.ico"])
def test_probes_and_documents_need_no_key(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "own"),
    [
        ("POST", "/chat/completions", CHAT),
        ("POST", "/completions/", "/v1/completions"),
        ("POST", "/embeddings", "/v1/embeddings"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/models/fake", "/v1/models/fake"),
    ],
)
def test_a_path_of_another_server_is_guarded_like_its_own(guarded: TestClient, method: str, path: str, own: str) -> None:
    body = {CHAT: HELLO, "/v1/completions": {"prompt": "a", "max_tokens": 1, "seed": 1}, "/v1/embeddings": {"input": "a"}}.get(own)
    for headers in ({}, bearer("wrong"), bearer(ALICE)):
        here, there = (guarded.request(method, each, json=body, headers=headers) for each in (path, own))
        assert here.status_code == there.status_code and here.json().keys() == there.json().keys()
    assert here.status_code == 200
    assert path.rstrip("/") not in guarded.get("/openapi.json").json()["paths"]


def test_docs_say_how_a_key_is_sent(guarded: TestClient, alone: TestClient) -> None:
    document = guarded.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert "401" in document["paths"][CHAT]["post"]["responses"] and "401" not in document["paths"]["/health"]["get"]["responses"]
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "security" not in alone.get("/openapi.json").json()


def test_without_keys_everybody_is_let_in(alone: TestClient) -> None:
    for headers in ({}, bearer("none")):
        assert alone.post(CHAT, json=HELLO, headers=headers).status_code == 200
        assert alone.get("/slots", headers=headers).status_code == 200
        assert alone.get("/client", headers=headers).json() is None


def test_an_allowed_page_may_ask_first_and_reads_the_refusal(guarded: TestClient) -> None:
    page = {"Origin": "https://page.example"}
    ask = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert guarded.options(CHAT, headers=ask).status_code == 200
    refused = guarded.post(CHAT, json=HELLO, headers=page)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page["Origin"])


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/nowhere", 404), (CHAT, 405), ("/broken", 500)])
def test_every_answer_has_the_security_headers(alone: TestClient, path: str, status: int) -> None:
    answer = alone.get(path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_a_websocket_is_refused(guarded: TestClient) -> None:
    """A route that somebody adds would be open to pages of other sites, and to clients without a key."""
    with pytest.raises(WebSocketDisconnect), guarded.websocket_connect("/socket", headers=bearer(ALICE)):
        pass


def test_no_key_and_no_blocked_text_reaches_the_log(tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bans.yaml").write_text("phrases: [glass house]\n")
    caplog.set_level(logging.DEBUG)
    with serving(tiny_folder, keys=LINES, bans_file=str(tmp_path / "bans.yaml")) as client:
        for key in (ALICE, ROOT, "wrong-key-of-somebody"):
            client.get("/broken", headers=bearer(key))
            client.post(CHAT, json={"messages": [{"role": "user", "content": "a glass house"}]}, headers={"x-api-key": key})
    assert not [secret for secret in (ALICE, ROOT, "wrong-key", "glass") if secret in caplog.text]


@pytest.mark.parametrize("setting", ["keys_file", "bans_file"])
def test_a_file_that_is_not_there_ends_the_start(tmp_path: Path, setting: str) -> None:
    with pytest.raises(SetupError, match="nowhere cannot be read"):
        create_server(read([f"--security.{setting}", str(tmp_path / "nowhere")]), "no:engine", lambda *_: None)


FILES = ("file:///etc/hostname", "/etc/hostname", "../../../etc/hostname")
OPENING: list[str] = []  # what is opened while a test listens
LISTENING: list[bool] = []


def note_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if LISTENING and event in {"open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"}:
        OPENING.append(str(arguments[0]) + str(arguments[1:2]))


@pytest.mark.parametrize("place", [*FILES, "http://127.0.0.1:9/hostname"])
def test_no_path_and_no_address_of_a_request_is_opened(alone: TestClient, place: str) -> None:
    """By Python's audit events, which no file that Python opens escapes."""
    part = {"type": "image_url", "image_url": {"url": place}}
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": [{"role": "user", "content": [part]}]}),
        (CHAT, {**HELLO, "model": place}),
        (
            CHAT,
            {**HELLO, "chat_template": place, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": place}}}]},
        ),
        (CHAT, {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": {"$ref": place}}}}),
        ("/v1/completions", {"prompt": place, "max_tokens": 1, "lora_path": place}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": place}]}]}),
        (MESSAGES, {**HELLO, "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": place}}]}]}),
        ("/v1/score", {"text": place, "calibration": place}),
        ("/v1/embeddings", {"input": place, "model": place}),
        ("/tokenize", {"prompt": place, "model": place}),
    ]
    if not OPENING:
        sys.addaudithook(note_opening)
        OPENING.append("")  # an audit hook cannot be removed, so it is added once
    del OPENING[1:]
    LISTENING.append(True)
    try:
        open("/etc/hostname").close()
        statuses = [alone.post(path, json=body).status_code for path, body in bodies]
        statuses += [alone.get(path).status_code for path in (f"/v1/models/{place}", f"/docs/static/{place}", f"/slots?model={place}")]
    finally:
        LISTENING.clear()
    opened = [item for item in OPENING if "hostname" in item or ", 9)" in item]
    assert opened == ["/etc/hostname('r',)"], opened  # our own, which shows that the hook listens
    assert statuses[0] == 400 and statuses[1] == 404 and max(statuses) < 500


def test_with_keys_an_administrator_needs_that_role(guarded: TestClient) -> None:
    assert guarded.post("/admin/models/x", headers=bearer(ALICE)).json()["error"]["code"] == "admin_only"
    assert guarded.post("/admin/models/x").json()["error"]["code"] == "missing_api_key"
    assert guarded.post("/admin/models/x", headers=bearer(ROOT)).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**HELLO, "user": "bob"}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2, "user": "bob"}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 2, "user": "bob"}),
        (MESSAGES, HELLO),
        ("/generate", {"prompt": "a", "max_length": 2}),
    ],
)
def test_what_a_key_has_in_the_cache_is_its_own_and_found_by_no_other(tiny_folder: Path, path: str, body: dict[str, Any]) -> None:
    with serving(tiny_folder, keys=LINES) as client:
        for secret in (ALICE, ROOT):
            assert client.post(path, json=body, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert [(job.owner, job.private) for job in client.app.state.engine.submitted] == [("alice", True), ("root", True)]  # type: ignore[attr-defined]
    with serving(tiny_folder) as client:
        assert client.post(path, json=body).status_code == 200
        assert [(job.owner, job.private) for job in client.app.state.engine.submitted] == [(body.get("user"), False)]  # type: ignore[attr-defined]
