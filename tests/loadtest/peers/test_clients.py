"""What is asked of a server, against one that has no model: counts, windows, and answers that are not what was asked for."""

import asyncio
import statistics
from dataclasses import replace

import pytest
from talker import READ_S, WORDS_BEFORE

from loadtest.peers import clients
from loadtest.peers.clients import QUICK, Options, Round
from loadtest.peers.servers import Peer, PeerFailed, Server
from loadtest.summary import percentile


def ask(url, what, *, extra=None, done=True):
    async def go():
        async with clients.chatter(Server(Peer("talker", (), "/ready", extra or {}, done), url)) as chatter:
            return await what(chatter)

    return asyncio.run(go())


def test_rounds_are_the_same_each_time_and_share_no_beginning():
    rounds = clients.rounds(Options(), 32)
    assert rounds == clients.rounds(Options(), 32) and [len(texts) for texts in rounds] == [64] * 6
    every = [text for texts in [*rounds, *clients.rounds(Options(), 1)] for text in texts]
    beginnings = [" ".join(text.split()[:4]) for text in every]
    assert len(set(beginnings)) == len(every) == 6 * 64 + 6 * 8


def test_a_round(talking):
    talker, url = talking
    one = ask(url, lambda chatter: clients.play(chatter, clients.rounds(QUICK, 4)[1], 4, QUICK.new_tokens), extra={"mine": 1})
    assert (one.requests, one.tokens, one.prompt_tokens) == (4, 32, 4 * (17 + WORDS_BEFORE))
    assert 0 < one.tokens_per_s < 4 / 0.002
    assert {(body["max_tokens"], body["temperature"], body["mine"]) for body in talker.bodies} == {(8, 0.0, 1)}


def test_rounds_together_are_their_tokens_over_their_seconds():
    one = clients.together([Round(2, 40, 20, 1.0), Round(2, 44, 20, 3.0)])
    assert one == Round(4, 84, 40, 4.0) and one.tokens_per_s == 10.0


def test_a_short_answer_is_no_measurement(talking):
    talker, url = talking
    talker.lost = 1
    with pytest.raises(PeerFailed, match="talker: 7 tokens came, 8 were asked for"):
        ask(url, lambda chatter: clients.warm(chatter, QUICK))


def test_a_stream_without_its_mark_counts_only_where_that_is_known(talking):
    talker, url = talking
    talker.done = False
    ask(url, lambda chatter: clients.warm(chatter, QUICK), done=False)
    with pytest.raises(PeerFailed, match="truncated"):
        ask(url, lambda chatter: clients.warm(chatter, QUICK))


def test_no_server_and_a_refusal(talking, free_port):
    _, url = talking
    with pytest.raises(PeerFailed, match="talker answered 404"):
        ask(f"{url}/nowhere", lambda chatter: clients.warm(chatter, QUICK))
    with pytest.raises(PeerFailed, match="ClientConnectorError"):
        ask("http://127.0.0.1:1", lambda chatter: clients.warm(chatter, QUICK))


def test_words_of_so_many_tokens(talking):
    assert ask(talking[1], lambda chatter: clients.words_of(chatter, 1000)) == 1000 - WORDS_BEFORE


def test_a_continued_talk(talking):
    talker, url = talking
    (talk,) = ask(url, lambda chatter: clients.continued(chatter, QUICK))
    assert talk.prompt_tokens == 200
    assert talk.first_ms >= 1000 * READ_S > talk.continued_ms
    turn = talker.bodies[-1]["messages"]
    assert [message["role"] for message in turn] == ["user", "assistant", "user"]
    assert turn[1]["content"] == "word " * 8


def test_streams_beside_a_long_prompt(talking):
    _, url = talking
    (found,) = ask(url, lambda chatter: clients.press(chatter, QUICK))
    assert found.prompt_tokens == 400 and found.read_ms >= 1000 * READ_S
    assert len(found.calm_ms) >= 2 * (QUICK.calm_deltas - 4) and len(found.pressed_ms) >= 2
    assert statistics.median(found.calm_ms) < 1000 * READ_S <= percentile(found.pressed_ms, 0.99)


def test_streams_that_are_over_too_early_say_so(talking, monkeypatch):
    monkeypatch.setattr(clients, "LONG_ANSWER", 4)
    with pytest.raises(PeerFailed, match="was over before"):
        ask(talking[1], lambda chatter: clients.press(chatter, QUICK))


def test_chats_beside_scores(talking):
    talker, url = talking
    options = replace(QUICK, chats_per_stream=2, new_tokens=20)
    apart = ask(url, lambda chatter: clients.tpot(chatter, options, scoring=False))
    assert len(apart) == 4 and talker.scores == 0
    beside = ask(url, lambda chatter: clients.tpot(chatter, options, scoring=True))
    assert len(beside) == 4 and talker.scores > 0
    assert statistics.median(beside) > 2 * statistics.median(apart)


def test_scores_that_fail_are_not_passed_over(talking, monkeypatch):
    async def refuse(*_):
        raise PeerFailed("no score")

    monkeypatch.setattr(clients.Chatter, "score", refuse)
    with pytest.raises(PeerFailed, match="no score"):
        ask(talking[1], lambda chatter: clients.tpot(chatter, QUICK, scoring=True))
