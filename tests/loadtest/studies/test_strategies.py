"""Requests to the server, measures of a text, and a whole run against a server without a model."""

import json
import sys
from contextlib import contextmanager

import httpx
import pytest
from pydantic import ValidationError

from app.schemas import GenerateRequest
from loadtest.peers.servers import Peer, PeerFailed, Server
from loadtest.studies import strategies
from loadtest.studies.strategies import (
    PROMPTS,
    STRATEGIES,
    distinct_share,
    generate,
    litmus_for_beams,
    mean_logprob,
    repeated_share,
    request_body,
)


def test_repetition_is_counted_in_runs_of_four_words():
    assert repeated_share("one two three four five six") == 0
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5), "one of five runs occurred before"
    assert repeated_share("too short a") == repeated_share("") == 0


def test_distinct_runs():
    assert distinct_share("the fox and The crow", 1) == 4 / 5
    assert distinct_share("a b a b", 2) == 2 / 3
    assert distinct_share("", 1) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_server_accepts_the_requests(strategy):
    asked = GenerateRequest.model_validate(request_body(strategy, PROMPTS, 96, 5))
    assert asked.min_length == asked.max_length == 96 and asked.prompts == list(PROMPTS)
    assert (asked.seed == 5) == asked.do_sample, "only what is drawn has a seed"
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate(request_body(strategy, PROMPTS, 96, 5) | {"no_such": 1})


def answering(*replies):
    """A client whose requests get these replies in turn."""
    left = list(replies)
    return httpx.Client(base_url="http://test", transport=httpx.MockTransport(lambda request: left.pop(0)))


def test_only_the_answer_counts_for_its_probability():
    tokens = [{"end": 3, "logprob": -9.0}, {"end": 8, "logprob": -1.0}, {"end": 9, "logprob": -2.0}]
    score = httpx.Response(200, json={"data": [{"object": "score", "tokens": tokens}]})
    assert mean_logprob(answering(score), "The", " fox.") == -1.5


def test_wrong_responses_are_failures():
    asked = request_body("greedy", ["a", "b"], 4, 0)
    with pytest.raises(PeerFailed, match="/generate returned 1 answers to 2 prompts"):
        generate(answering(httpx.Response(200, json={"gen_text": ["x"]})), asked)
    with pytest.raises(PeerFailed, match="/generate answered 429"):
        generate(answering(httpx.Response(429, json={})), asked)
    with pytest.raises(PeerFailed, match="a text was not scored: too short"):
        mean_logprob(answering(httpx.Response(200, json={"data": [{"object": "error", "message": "too short"}]})), "a", "b")


def test_a_slot_for_every_beam():
    given = strategies._parse_args(["--prompts", "3"])
    command = litmus_for_beams(given).command
    assert command[command.index("--model.slots") + 1] == "12"


def test_a_run(monkeypatch, tmp_path, capsys):
    def reply(request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "fake", "dtype": "float32"}]})
        asked = json.loads(request.content)
        if request.url.path == "/generate":
            return httpx.Response(200, json={"gen_text": [" there was a fox."] * len(asked["prompt"])})
        return httpx.Response(200, json={"data": [{"object": "score", "tokens": [{"end": len(asked["text"]), "logprob": -2.0}]}]})

    @contextmanager
    def running(peer, folder):
        yield Server(Peer("fake", (sys.executable,), "/ready"), "http://test")

    client = httpx.Client
    monkeypatch.setattr(strategies, "running", running)
    monkeypatch.setattr(httpx, "Client", lambda **given: client(**given, transport=httpx.MockTransport(reply)))
    assert strategies.main(["--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("strategies-*.jsonl")
    manifest, *rows = map(json.loads, path.read_text().splitlines())
    assert manifest["quick"] and manifest["model"]["id"] == "fake"
    answers = [row for row in rows if row["kind"] == "answer"]
    assert len(answers) == 2 * len(STRATEGIES) and {row["opening"] for row in answers} == {0, 1}
    assert all(row["mean_logprob"] == -2 and row["tokens"] == 12 and row["distinct_1"] == 1 for row in answers)
    assert [row["tokens"] for row in rows if row["kind"] == "crowd"] == [24] * len(STRATEGIES)
    shown = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:7]] == [f"| {name}" for name in STRATEGIES]
