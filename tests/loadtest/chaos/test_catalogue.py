import random

import pytest

from app.schemas import ChatRequest, CompletionRequest, ScoreRequest
from loadtest.chaos.catalogue import CHAT, COMPLETIONS, KINDS, PROBE, SCORE, client_requests, shuffled

SCHEMAS = {CHAT: ChatRequest, COMPLETIONS: CompletionRequest, SCORE: ScoreRequest}


@pytest.fixture(scope="module")
def everything():
    return [request for client in range(16) for request in client_requests(client, 6, 3, 40)]


def test_every_body_is_one_of_the_api(everything):
    for request in [*everything, PROBE]:
        SCHEMAS[request.path].model_validate(dict(request.body))


def test_the_same_seed_gives_the_same_requests_each_with_a_name_of_its_own(everything):
    assert client_requests(2, 6, 3, 40) == everything[12:18] != client_requests(2, 6, 4, 40)
    assert len({request.name for request in everything}) == len(everything)


def test_all_kinds_are_there_equally_often_and_each_client_begins_with_another(everything):
    kinds = [request.kind for request in everything]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 24)
    assert [client_requests(client, 1, 3, 40)[0].kind for client in range(4)] == list(KINDS)


def test_what_a_resumed_answer_must_carry_over_is_asked_for(everything):
    fields = {name for request in everything for name in request.body}
    assert fields >= {"n", "stop", "response_format", "logprobs", "repetition_penalty", "presence_penalty", "stream_options"}
    assert {request.streamed for request in everything if request.kind == "completion"} == {True, False}
    assert all(request.streamed == (request.kind == "stream") for request in everything if request.kind in {"stream", "chat"})
    assert all("seed" in request.body and request.body["max_tokens"] <= 40 for request in everything if request.kind != "score")


def test_shuffled_gives_as_many_as_are_asked_for():
    requests = client_requests(0, 4, 0, 40)
    assert sorted(request.name for request in shuffled(requests, 4, "a")) == [f"0/{index}" for index in range(4)]
    assert len(shuffled(requests, 10, "a")) == 10 and shuffled(requests, 10, "a") != shuffled(requests, 10, "b")
    assert random.Random("a").sample(requests, 4) == shuffled(requests, 4, "a")
