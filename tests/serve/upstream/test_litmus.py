"""Another Litmus as the upstream: everything that it can do is done through this one as well."""

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from serving import RunningServer, wait_for
from upstreams import create_app, running

from app.settings import read

PROMPT = {"messages": [{"role": "user", "content": "Tell me of a fox and a crow."}], "max_tokens": 12, "seed": 7}
TEXT = "Once upon a time there was a king who had three sons, and the youngest of them went into the wood. " * 4


@pytest.fixture(scope="module")
def front(api: RunningServer):
    settings = read(["--model.upstream", f"{api.url}/v1", "--model.name", "far", "--model.upstream_model", "storyteller"])
    app, _ = create_app(settings)
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        wait_for(lambda: http.get("/ready").status_code == 200)
        yield http


def same(front: httpx.Client, api: RunningServer, path: str, body: dict) -> tuple[Any, Any]:
    """The answers of both, without what names them. The last digits of a number depend on what else was in the batch or the cache."""
    there = httpx.post(f"{api.url}{path}", json=body, timeout=60).raise_for_status().json()
    here = front.post(path, json={**body, "model": "far"}).raise_for_status().json()
    return named_away(here), named_away(there, pytest.approx)


def named_away(value: Any, number: Callable[..., Any] = lambda value, **_: value) -> Any:
    if isinstance(value, dict):
        names = {"id", "created", "model", "timing", "usage", "rank"}  # a rank turns with the last digits of two logits
        return {name: named_away(item, number) for name, item in value.items() if name not in names}
    if isinstance(value, list):
        return [named_away(item, number) for item in value]
    return number(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**PROMPT, "logprobs": True, "top_logprobs": 2, "n": 2}),
        ("/v1/chat/completions", {**PROMPT, "max_tokens": 16, "response_format": {"type": "json_object"}}),
        ("/v1/completions", {"prompt": "Once upon", "max_tokens": 5, "seed": 1, "echo": True, "bad_words": ["the"]}),
        ("/v1/embeddings", {"input": ["a fox", "a crow"], "pooling": "last"}),
        ("/v1/score", {"text": TEXT}),
        ("/generate", {"prompt": "Once upon", "max_length": 8, "num_beams": 3}),
        ("/generate", {"prompt": "Once upon", "max_length": 8, "penalty_alpha": 0.6, "top_k": 4}),
        ("/tokenize", {"prompt": "Once upon a time"}),
        ("/detokenize", {"tokens": [5, 6, 7]}),
        ("/v1/messages/count_tokens", {"model": "storyteller", "messages": PROMPT["messages"]}),
    ],
)
def test_the_answer_is_that_of_the_other_litmus(front: httpx.Client, api: RunningServer, path: str, body: dict) -> None:
    here, there = same(front, api, path, body)
    assert here == there and here


def test_a_stream_and_its_usage(front: httpx.Client, api: RunningServer) -> None:
    body = {**PROMPT, "model": "far", "stream": True, "stream_options": {"include_usage": True}}
    lines = [line for line in front.post("/v1/chat/completions", json=body).text.split("\n") if line.startswith("data: ")]
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    whole = httpx.post(f"{api.url}/v1/chat/completions", json=PROMPT, timeout=60).json()
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"] and lines[-1] == "data: [DONE]"
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {chunk["model"] for chunk in chunks} == {"far"}


def test_responses_and_messages(front: httpx.Client) -> None:
    response = front.post("/v1/responses", json={"input": "Hello.", "max_output_tokens": 4, "model": "far"}).raise_for_status().json()
    assert (response["model"], response["object"]) == ("far", "response")
    body = {"messages": PROMPT["messages"], "max_tokens": 4, "model": "far"}
    assert front.post("/v1/messages", json=body).raise_for_status().json()["model"] == "far"


def test_what_it_refuses_is_refused_with_its_words(front: httpx.Client) -> None:
    response = front.post("/v1/chat/completions", json={**PROMPT, "model": "far", "temperature": 9})
    assert response.status_code == 400 and response.json()["error"]["param"] == "temperature"
    assert front.post("/v1/chat/completions", json={**PROMPT, "model": "far", "unheard_of": 1}).headers["x-litmus-ignored"] == "unheard_of"


def test_its_card_is_that_of_the_other_litmus(front: httpx.Client, api: RunningServer) -> None:
    here, there = (httpx.get(f"{url}/v1/models").json()["data"][0] for url in (front.base_url, api.url))
    assert (here["id"], here["owned_by"], here["upstreams"][0]["model"]) == ("far", "litmus", "storyteller")
    for name in ("context", "dtype", "capabilities", "weights", "methods", "tools", "observer"):
        assert here[name] == there[name], name


def test_a_client_that_leaves_frees_the_slot_there(front: httpx.Client, api: RunningServer) -> None:
    body = json.dumps({**PROMPT, "model": "far", "max_tokens": 500, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((front.base_url.host, front.base_url.port)) as client:
        client.sendall(head.encode() + body)
        wait_for(lambda: b"data: " in client.recv(4096))
    wait_for(lambda: all(slot["stage"] == "idle" for slot in api.slots()["slots"]))
