"""A request's own deadline: by its body or by a header, on every route that makes the model work."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from app.engine.events import Event

TIMEOUT_S = 1234.5  # as no other timer has it
WORK: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/score", {"text": "a text to score"}),
    ("/v1/embeddings", {"input": "hi"}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
    ("/generate", {"prompt": "hi", "max_length": 5}),
]
WITH_FIELD = WORK[:4]


@pytest.mark.parametrize(("path", "body"), WORK, ids=[path for path, _ in WORK])
def test_the_header_ends_the_request_and_frees_its_place(served: Any, path: str, body: dict[str, Any]) -> None:
    served.worker.stalled = True
    response = served.client.post(path, json=body, headers={"X-Request-Timeout": "0.05"})
    assert response.status_code == 408 and "0.05 s" in response.json()["error"]["message"]
    assert served.router.in_flight == served.router.replicas[0].load == 0
    assert served.engine.jobs == {}


@pytest.mark.parametrize(("path", "body"), WITH_FIELD, ids=[path for path, _ in WITH_FIELD])
def test_the_field_does_the_same_and_goes_before_the_header(served: Any, path: str, body: dict[str, Any]) -> None:
    served.worker.stalled = True
    response = served.client.post(path, json=body | {"timeout_s": 0.05}, headers={"X-Request-Timeout": "3600"})
    assert (response.status_code, response.json()["error"]["code"]) == (408, "deadline_exceeded")


def test_a_stream_that_is_too_late_ends_in_an_error_event(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is over after its first word, on a machine of any speed."""
    call_later, step = asyncio.BaseEventLoop.call_later, served.engine.step
    ends: list[Callable[[], Any]] = []

    def note(loop: Any, delay: float, *call: Any, **options: Any) -> asyncio.TimerHandle:
        if delay == TIMEOUT_S:
            ends.append(partial(*call))
        return call_later(loop, delay, *call, **options)

    def step_and_end() -> list[Event]:
        asyncio.get_running_loop().call_soon(ends.pop() if ends else int)
        events: list[Event] = step()
        return events

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", note)
    monkeypatch.setattr(served.engine, "step", step_and_end)
    served.engine.script = [(f"{index} ", (5,)) for index in range(10_000)]
    response = served.client.post("/v1/completions", json={"prompt": "hi", "stream": True, "timeout_s": TIMEOUT_S})
    assert response.status_code == 200 and '"0 "' in response.text
    assert '"code":"deadline_exceeded"' in response.text and response.text.endswith("data: [DONE]\n\n")
    assert len(served.engine.cancelled) == 1


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e9", ""])
def test_a_header_that_is_no_deadline_is_refused(served: Any, value: str) -> None:
    response = served.client.post("/v1/completions", json={"prompt": "hi"}, headers={"X-Request-Timeout": value})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "X-Request-Timeout") and "number of seconds" in error["message"]
    assert served.engine.submitted == []


def test_a_deadline_that_is_kept_changes_nothing(served: Any) -> None:
    body = {"prompt": "hi", "seed": 1, "max_tokens": 3}
    plain = served.client.post("/v1/completions", json=body).json()["choices"]
    assert served.client.post("/v1/completions", json=body | {"timeout_s": 30}).json()["choices"] == plain
