"""Measurements of a server that has no model: counts, windows, and answers other than requested."""

import asyncio
import statistics
from dataclasses import replace

import pytest
from fake_server import PREFILL_S, TEMPLATE_TOKENS

from loadtest.peers import clients
from loadtest.peers.clients import QUICK, Options, Round
from loadtest.peers.servers import Peer, PeerFailed, Server
from loadtest.summary import percentile
from tests.loadtest.undisturbed import first_good


def ask(url, measure, *, extra_body=None, sends_done=True):
    async def go():
        async with clients.connect(Server(Peer("fake", (), "/ready", extra_body or {}, sends_done), url)) as client:
            return await measure(client)

    return asyncio.run(go())


def test_rounds_are_the_same_each_time_and_share_no_beginning():
    rounds = clients.prompts_by_round(Options(), 32)
    assert rounds == clients.prompts_by_round(Options(), 32) and [len(texts) for texts in rounds] == [64] * 6
    every = [text for texts in [*rounds, *clients.prompts_by_round(Options(), 1)] for text in texts]
    beginnings = [" ".join(text.split()[:4]) for text in every]
    assert len(set(beginnings)) == len(every) == 6 * 64 + 6 * 8


def test_a_round(fake_server):
    server, url = fake_server
    one = ask(
        url, lambda client: clients.run_round(client, clients.prompts_by_round(QUICK, 4)[1], 4, QUICK.new_tokens), extra_body={"mine": 1}
    )
    assert (one.requests, one.tokens, one.prompt_tokens) == (4, 32, 4 * (17 + TEMPLATE_TOKENS))
    assert 0 < one.tokens_per_s < 4 / 0.002
    assert {(body["max_tokens"], body["temperature"], body["mine"]) for body in server.bodies} == {(8, 0.0, 1)}


def test_rounds_together_are_their_tokens_over_their_seconds():
    one = clients.sum_rounds([Round(2, 40, 20, 1.0), Round(2, 44, 20, 3.0)])
    assert one == Round(4, 84, 40, 4.0) and one.tokens_per_s == 10.0


def test_a_short_answer_is_a_failure(fake_server):
    server, url = fake_server
    server.missing_tokens = 1
    with pytest.raises(PeerFailed, match="fake: returned 7 tokens instead of 8"):
        ask(url, lambda client: clients.warm_up(client, QUICK))


def test_a_stream_without_done_is_accepted_only_from_a_peer_that_sends_none(fake_server):
    server, url = fake_server
    server.sends_done = False
    ask(url, lambda client: clients.warm_up(client, QUICK), sends_done=False)
    with pytest.raises(PeerFailed, match="truncated"):
        ask(url, lambda client: clients.warm_up(client, QUICK))


def test_connection_and_http_errors(fake_server, free_port):
    _, url = fake_server
    with pytest.raises(PeerFailed, match="fake answered 404"):
        ask(f"{url}/nowhere", lambda client: clients.warm_up(client, QUICK))
    with pytest.raises(PeerFailed, match="ClientConnectorError"):
        ask("http://127.0.0.1:1", lambda client: clients.warm_up(client, QUICK))


def measured(fake_server, measure):
    """The one result of a measure of `clients`, taken of a server that has seen nothing."""
    server, url = fake_server
    server.seen.clear()
    (result,) = ask(url, lambda client: measure(client, QUICK))
    return result


def test_words_for_tokens(fake_server):
    assert ask(fake_server[1], lambda client: clients.words_for_tokens(client, 1000)) == 1000 - TEMPLATE_TOKENS


def test_a_continued_conversation(fake_server):
    server, _ = fake_server

    def check(conversation):
        assert conversation.prompt_tokens == 200
        assert conversation.first_ms >= 1000 * PREFILL_S > conversation.continued_ms

    check(first_good(lambda: measured(fake_server, clients.measure_continued), check))
    turn = server.bodies[-1]["messages"]
    assert [message["role"] for message in turn] == ["user", "assistant", "user"]
    assert turn[1]["content"] == "word " * 8


def test_streams_beside_a_long_prompt(fake_server):
    def check(found):
        assert found.prompt_tokens == 400 and found.read_ms >= 1000 * PREFILL_S
        assert len(found.calm_ms) >= 2 * (QUICK.calm_deltas - 4) and len(found.pressed_ms) >= 2
        waited_ms = 1000 * PREFILL_S * 0.8  # less the time that the token before it came late
        assert statistics.median(found.calm_ms) < waited_ms <= percentile(found.pressed_ms, 0.99)

    check(first_good(lambda: measured(fake_server, clients.measure_prefill_interference), check))


def test_streams_that_end_too_early_are_a_failure(fake_server, monkeypatch):
    monkeypatch.setattr(clients, "LONG_ANSWER_TOKENS", 4)
    with pytest.raises(PeerFailed, match="ended before"):
        ask(fake_server[1], lambda client: clients.measure_prefill_interference(client, QUICK))


def test_chats_beside_scores(fake_server):
    server, url = fake_server
    options = replace(QUICK, chats_per_stream=2, new_tokens=20)

    def measure():
        counts = [server.scores]
        apart = ask(url, lambda client: clients.measure_tpot(client, options, scoring=False))
        counts.append(server.scores)
        beside = ask(url, lambda client: clients.measure_tpot(client, options, scoring=True))
        return apart, beside, [*counts, server.scores]

    def check(found):
        apart, beside, (before, between, after) = found
        assert len(apart) == 4 and between == before
        assert len(beside) == 4 and after > between
        assert statistics.median(beside) > 2 * statistics.median(apart)

    check(first_good(measure, check))


def test_a_failed_score_is_reported(fake_server, monkeypatch):
    async def refuse(*_):
        raise PeerFailed("no score")

    monkeypatch.setattr(clients.ChatClient, "score", refuse)
    with pytest.raises(PeerFailed, match="no score"):
        ask(fake_server[1], lambda client: clients.measure_tpot(client, QUICK, scoring=True))
