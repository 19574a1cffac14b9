"""Request ids and the line that each request leaves in the log."""

import asyncio
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from observing import LIMIT, POISON, Observed, create_observed, value_of

from serve.observe.record import current_record
from serve.workers.router import Router

TEXT, MESSAGES = "/v1/completions", "/v1/messages"
ID = "X-Request-Id"


def requests_in(log: StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if line["logger"] == "serve.observe.middleware"]


@pytest.mark.parametrize("sent", ["a", "Trace 7: a/b?c=d", "~" * 128])
def test_a_clients_id_comes_back(observed: Observed, sent: str) -> None:
    assert observed.client.get("/health", headers={ID: sent}).headers[ID] == sent


@pytest.mark.parametrize("sent", [None, b"", b"x" * 129, b"caf\xe9", b"a\tb", b"\xf0\x9f\x98\x80"])
def test_another_id_is_replaced_by_a_new_one(observed: Observed, sent: bytes | None) -> None:
    answers = [observed.client.get("/health", headers={} if sent is None else {ID: sent}).headers[ID] for _ in range(2)]
    assert all(re.fullmatch(r"req-[0-9a-f]{32}", id) for id in answers) and answers[0] != answers[1]


def test_every_answer_has_its_id_once(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    json_headers = {"Content-Type": "application/json"}
    answers = [
        observed.client.post(TEXT, json={"prompt": "a", "max_tokens": 2, "stream": True}, headers={ID: "id"}),
        observed.client.post(TEXT, content="{", headers={ID: "id", **json_headers}),
        observed.client.post(TEXT, content=" " * (LIMIT + 1), headers={ID: "id", **json_headers}),
        observed.client.get("/nowhere", headers={ID: "id"}),
        observed.client.get(TEXT, headers={ID: "id"}),
    ]
    monkeypatch.setattr(observed.router, "fleet", lambda model=None: 1 / 0)
    answers.append(observed.client.post(TEXT, json={"prompt": "a"}, headers={ID: "id"}))
    assert [answer.status_code for answer in answers] == [200, 400, 413, 404, 405, 500]
    assert [answer.headers.get_list(ID) for answer in answers] == [["id"]] * 6


def test_clients_of_anthropic_read_their_own_header(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    version = {"anthropic-version": "2023-06-01"}
    answers = [
        observed.client.post(MESSAGES, json=hello),
        observed.client.post(MESSAGES, json={**hello, "stream": True}),
        observed.client.post(f"{MESSAGES}/count_tokens", json={"messages": []}),
        observed.client.get(f"{MESSAGES}/batches"),
        observed.client.get("/v1/models", headers=version),
        observed.client.get("/v1/models/another", headers=version),
    ]
    monkeypatch.setattr(observed.router, "fleet", lambda model=None: 1 / 0)
    answers.append(observed.client.post(MESSAGES, json=hello))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 200, 404, 500]
    assert [answer.headers.get_list("request-id") for answer in answers] == [[answer.headers[ID]] for answer in answers]
    for answer in (answers[2], answers[3], answers[-1]):
        assert answer.json()["request_id"] == answer.headers[ID]
    assert "request-id" not in observed.client.post(TEXT, json={"prompt": "a", "max_tokens": 1}).headers


def test_a_request_leaves_one_line(observed: Observed, json_log: StringIO) -> None:
    observed.client.post(TEXT, json={"prompt": "abc", "max_tokens": 4, "colour": 1}, headers={ID: "mine"})
    (line,) = requests_in(json_log)
    assert line.pop("seconds") > 0 and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "serve.observe.middleware",
        "message": "request",
        "method": "POST",
        "route": TEXT,
        "status": 200,
        "model": "fake",
        "prompt_tokens": 4,
        "generated_tokens": 4,
        "ignored_fields": 1,
        "request_id": "mine",
    }


def test_a_path_of_another_server_is_one_route_with_its_own(observed: Observed, json_log: StringIO) -> None:
    observed.client.post("/completions", json={"prompt": "abc", "max_tokens": 4})
    (line,) = requests_in(json_log)
    assert (line["route"], line["status"], line["generated_tokens"]) == (TEXT, 200, 4)
    assert 'route="/completions"' not in observed.client.get("/metrics").text


def test_what_the_router_does_not_note_has_its_route(observed: Observed, json_log: StringIO) -> None:
    for path in ("/docs", "/openapi.json", "/docs/", "/openapi.json/x"):
        observed.client.get(path, follow_redirects=False)
    assert [line["route"] for line in requests_in(json_log)] == ["/docs", "/openapi.json", "/docs", "unmatched"]


def test_probes_are_quiet_unless_they_fail(observed: Observed, json_log: StringIO) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        observed.client.get(path)
    observed.router.draining = True
    observed.client.get("/ready")
    observed.client.post("/health")
    assert [(line["route"], line["level"]) for line in requests_in(json_log)] == [
        ("/health", "debug"),
        ("/ready", "debug"),
        ("/metrics", "debug"),
        ("/v1/models", "info"),
        ("/ready", "debug"),
        ("/health", "info"),
    ]


def test_refusals_failures_and_the_keys_name_are_in_the_line(tiny_folder: Path, json_log: StringIO) -> None:
    def name_key(app: FastAPI, router: Router) -> None:
        @app.get("/named")
        async def named() -> None:
            record = current_record()
            assert record is not None
            record.key = "ci"

    with create_observed(tiny_folder, name_key) as observed:
        observed.client.get("/named")
        observed.client.post(TEXT, json={"prompt": "a", "user": "banned"})
        observed.client.post(TEXT, json={"prompt": POISON})
    lines = requests_in(json_log)
    assert [(line["status"], line.get("key"), line.get("code")) for line in lines] == [
        (200, "ci", None),
        (403, None, "user_banned"),
        (500, None, "engine_failed"),
    ]


def test_a_client_that_leaves_is_told_from_a_failure(observed: Observed) -> None:
    """Where the answer had not begun, as nginx counts it."""

    async def leave() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody listens")

        scope = {"type": "http", "method": "POST", "path": TEXT, "headers": [], "query_string": b"", "root_path": ""}
        await observed.app(scope, receive, send)

    asyncio.run(leave())
    assert observed.value("requests_refused_total", route="unmatched", status=499, code="client_left") == 1


def test_a_client_that_leaves_during_an_answer_is_not_an_error_of_the_server(observed: Observed) -> None:
    observed.worker.stalled = True
    messages = [{"type": "http.request", "body": b'{"prompt": "a"}'}, {"type": "http.disconnect"}]

    async def leave() -> None:
        async def receive() -> dict[str, Any]:
            if len(messages) == 1:  # the client waits until its request is with the engine
                while not observed.worker.engine.submitted:
                    await asyncio.sleep(0.001)
            return messages.pop(0)

        async def send(message: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        await observed.app({"type": "http", "method": "POST", "path": TEXT, "headers": headers, "query_string": b""}, receive, send)

    asyncio.run(leave())
    observed.worker.stalled = False
    samples = observed.scrape()
    assert value_of(samples, "http_requests_total", method="POST", route=TEXT, status=499) == 1
    assert value_of(samples, "requests_refused_total", route=TEXT, status=499, code="client_left") == 1
    assert value_of(samples, "request_success_total", model="fake", finished_reason="abort") == 1


def test_the_line_can_be_turned_off(tiny_folder: Path, json_log: StringIO) -> None:
    with create_observed(tiny_folder, access_log=False) as observed:
        observed.client.post(TEXT, json={"prompt": "a", "max_tokens": 1})
    assert requests_in(json_log) == []
