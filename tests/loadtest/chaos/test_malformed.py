import json
import random

import pytest
from fastapi import FastAPI

from app.schemas import ChatRequest, ScoreRequest
from loadtest.chaos.exchange import is_whole, request_bytes, response_of
from loadtest.chaos.malformed import MAKERS, changed, shot, targets


@pytest.fixture(scope="module")
def found():
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> None: ...

    @app.post("/v1/score")
    async def score(body: ScoreRequest) -> None: ...

    @app.get("/v1/models/{name}")
    async def model(name: str, replica: int = 0) -> None: ...

    return targets(app.openapi())


def test_targets_are_the_operations_of_the_document(found):
    assert {(target.method, target.path) for target in found} == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/score"),
        ("GET", "/v1/models/{name}"),
    }
    by_path = {target.path: target for target in found}
    assert by_path["/v1/models/{name}"].query == ("replica",)
    assert by_path["/v1/score"].examples and "texts" in by_path["/v1/score"].fields


def test_the_same_seed_and_number_give_the_same_request(found):
    assert [shot(number, 1, found) for number in range(50)] == [shot(number, 1, found) for number in range(50)]
    assert shot(3, 1, found) != shot(3, 2, found)


def test_every_kind_is_made_and_goes_out_as_bytes(found):
    made = [shot(number, 0, found) for number in range(1500)]
    assert {one.kind for one in made} == set(MAKERS)
    for one in made:
        if one.raw is None:
            head, _, body = request_bytes(one).partition(b"\r\n\r\n")
            assert head.count(b"\r\nContent-Length: ") == 1 and body == one.body
    wrong = [one for one in made if one.kind == "wrong field"]
    assert {one.path for one in wrong} == {"/v1/chat/completions", "/v1/score"}
    assert all(isinstance(json.loads(one.body), dict) for one in wrong)


def test_half_valid_bodies_cost_little_if_they_are_served(found):
    made = [shot(number, 0, found) for number in range(800)]
    chats = [json.loads(one.body) for one in made if one.kind == "wrong field" and one.path.endswith("completions")]
    assert sum(body.get("max_tokens") == 2 for body in chats) > 0.7 * len(chats) > 20


def test_a_change_changes_something_somewhere():
    rng, body = random.Random(1), {"messages": [{"role": "user", "content": "hi"}], "n": 1}
    made = [changed(body, rng) for _ in range(300)]
    assert body == {"messages": [{"role": "user", "content": "hi"}], "n": 1}
    assert sum(one != body for one in made) > 290
    assert any(isinstance(one, dict) and one.get("messages") and one["messages"] != body["messages"] for one in made)


@pytest.mark.parametrize(
    ("received", "is_head", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", False, False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", False, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", True, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", False, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", False, True),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", False, False),
        (b"HTTP/1.1 200", False, False),
    ],
)
def test_a_response_is_whole_with_its_body(received, is_head, whole):
    assert is_whole(received, is_head) is whole


def test_what_is_no_response_has_no_status():
    assert response_of(b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nbody").said == "404"
    assert response_of(b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nbody").body == b"body"
    assert (response_of(b"").said, response_of(b"", late=True).said, response_of(b"hello").said) == ("closed", "silent", "closed")
