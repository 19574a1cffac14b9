"""Log-probabilities, echo and best_of in OpenAI's formats, as one body and streamed; no sampled token gets lost."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fakes import FACTS

from app.engine.events import Delta, Event
from app.engine.notices import SetBack, Waiting
from app.tokenizer import Piece, Tokenizer
from serve.wire.answers import Answer, stream
from serve.wire.logprobs import MIN_LOGPROB, LogprobEntry, OffsetTracker, chat_logprobs, completion_logprobs
from serve.wire.requests import AnswerOptions, Prompt

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
HALVES = [("", 1), ("\u732b", 2), ("", 1), (" b", 2)]  # (text of a step, bytes sampled in it)


def text_of(served: Any, **body: Any) -> dict[str, Any]:
    response = served.client.post(TEXT, json={"max_tokens": 3, "seed": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def halves(served: Any) -> tuple[int, ...]:
    """Script the engine to sample one character in two steps and to hold text back in a third; returns the tokens."""
    ids = served.tokenizer.encode("\u732b b", "prompt")[1:]
    counts = [1, 2, 0, 2]
    starts = [sum(counts[:place]) for place in range(4)]
    served.engine.script = [(text, ids[start : start + n]) for (text, _), start, n in zip(HALVES, starts, counts, strict=True)]
    return ids


def client(served: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=served.client)


def test_a_chat_lists_its_tokens(served: Any) -> None:
    body = served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 2, "seed": 0, "logprobs": True, "top_logprobs": 2}).json()
    assert body["choices"][0]["logprobs"] == {
        "reasoning_content": None,
        "content": [
            {
                "token": "!",
                "logprob": -1.0,
                "bytes": [33],
                "top_logprobs": [{"token": '"', "logprob": -0.5, "bytes": [34]}, {"token": "!", "logprob": -1.0, "bytes": [33]}],
            },
            {
                "token": '"',
                "logprob": -2.0,
                "bytes": [34],
                "top_logprobs": [{"token": "#", "logprob": -1.5, "bytes": [35]}, {"token": '"', "logprob": -2.0, "bytes": [34]}],
            },
        ],
        "refusal": None,
    }
    plain = served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 2, "logprobs": True}).json()
    assert [one["top_logprobs"] for one in plain["choices"][0]["logprobs"]["content"]] == [[], []]


def test_a_completion_has_parallel_lists(served: Any) -> None:
    logprobs = text_of(served, prompt="a", logprobs=1)["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["!", '"', "#"],
        "token_logprobs": [-1.0, -2.0, -3.0],
        "top_logprobs": [{'"': -0.5, "!": -1.0}, {"#": -1.5, '"': -2.0}, {"$": -2.5, "#": -3.0}],
        "text_offset": [0, 1, 2],
    }
    none = text_of(served, prompt="a", logprobs=0)["choices"][0]["logprobs"]
    assert none["top_logprobs"] == [{"!": -1.0}, {'"': -2.0}, {"#": -3.0}]
    assert text_of(served, prompt="a")["choices"][0]["logprobs"] is None


def test_parts_of_a_character_are_bytes_and_share_its_offset(served: Any) -> None:
    halves(served)
    choice = text_of(served, prompt="a", logprobs=0)["choices"][0]
    assert choice["text"] == "\u732b b"
    assert choice["logprobs"]["tokens"] == ["bytes:\\xe7", "bytes:\\x8c", "bytes:\\xab", " ", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 0, 1, 2]


def test_a_stream_loses_no_token_whose_text_is_held_back(served: Any) -> None:
    ids = halves(served)
    expected = [served.tokenizer.piece(id).text for id in ids]
    chat = client(served).chat.completions.create(model="fake", messages=HELLO, logprobs=True, top_logprobs=1, stream=True)
    choices = [chunk.choices[0] for chunk in chat]
    assert "".join(choice.delta.content or "" for choice in choices) == "\u732b b"
    assert [one.token for choice in choices for one in (choice.logprobs.content if choice.logprobs else [])] == expected
    assert choices[1].delta.content == ""  # the first byte of a character that is not complete yet
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    text = client(served).completions.create(model="fake", prompt="a", logprobs=1, stream=True)
    logprobs = [chunk.choices[0].logprobs for chunk in text]
    assert [token for one in logprobs if one for token in one.tokens] == expected
    assert [offset for one in logprobs if one for offset in one.text_offset] == [0, 0, 0, 1, 2]


def test_the_official_client_reads_both_forms(served: Any) -> None:
    chat = client(served).chat.completions.create(model="fake", messages=HELLO, logprobs=True, top_logprobs=20, max_tokens=1)
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 20
    text = client(served).completions.create(model="fake", prompt=["a", "bc"], logprobs=20, max_tokens=1, echo=True, best_of=2)
    assert [choice.logprobs.tokens for choice in text.choices] == [["<s>", "a", "!"], ["<s>", "b", "c", "!"]]
    assert text.usage.completion_tokens == 4


def test_an_echo_puts_the_prompt_before_the_answer(served: Any) -> None:
    choice = text_of(served, prompt="a \u732b", echo=True, max_tokens=1)["choices"][0]
    assert (choice["text"], choice["logprobs"]) == ("a \u732b6/0/0 ", None)
    assert served.engine.submitted[-1].prompt_logprobs is None


def test_an_echo_with_logprobs_includes_those_of_the_prompt(served: Any) -> None:
    choice = text_of(served, prompt="a \u732b", echo=True, max_tokens=2, logprobs=1)["choices"][0]
    logprobs, (_, a, *_) = choice["logprobs"], served.tokenizer.encode("a", "prompt")
    assert logprobs["tokens"] == ["<s>", "a", " ", "bytes:\\xe7", "bytes:\\x8c", "bytes:\\xab", "!", '"']
    assert (logprobs["token_logprobs"][:2], logprobs["token_logprobs"][-2:]) == ([None, -a / 100], [-1.0, -2.0])
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {"b": pytest.approx(-a / 100 + 0.5), "a": -a / 100}
    assert logprobs["text_offset"] == [0, 0, 1, 2, 2, 2, 3, 4]


def test_special_tokens_in_an_echoed_prompt_keep_their_offset(served: Any) -> None:
    logprobs = text_of(served, prompt="a</s>b", echo=True, max_tokens=0, logprobs=0)["choices"][0]
    assert (logprobs["text"], logprobs["logprobs"]["tokens"]) == ("a</s>b", ["<s>", "a", "</s>", "b"])
    assert logprobs["logprobs"]["text_offset"] == [0, 0, 1, 5]
    ids = served.tokenizer.encode("a</s>b", "prompt")
    logprobs = text_of(served, prompt=list(ids), echo=True, max_tokens=0, logprobs=0)["choices"][0]
    assert (logprobs["text"], logprobs["logprobs"]["text_offset"]) == ("ab", [0, 0, 1, 1])


def test_an_echo_of_no_tokens_is_the_prompt_alone(served: Any) -> None:
    """lm-eval requests the likelihood of a text this way."""
    body = text_of(served, prompt=[[5, 6, 7], [8]], echo=True, max_tokens=0, logprobs=1)
    assert [choice["logprobs"]["tokens"] for choice in body["choices"]] == [["$", "%", "&"], ["'"]]
    assert [choice["logprobs"]["token_logprobs"] for choice in body["choices"]] == [[None, -0.06, -0.07], [None]]
    assert [(choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [("$%&", "length"), ("'", "length")]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (4, 0)
    assert [job.max_tokens for job in served.engine.submitted] == [1, 1]
    served.engine.script = [("", (1,))]  # the one sampled token ends the answer; the response must not show that
    (choice,) = text_of(served, prompt=[5], echo=True, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("$", "length")


@pytest.mark.parametrize("as_text", [False, True])
def test_a_prompt_that_fills_the_context_is_echoed_and_needs_no_room_for_an_answer(served: Any, as_text: bool) -> None:
    def echoed(tokens: int, **body: Any) -> Any:
        prompt: Any = "a" * (tokens - 1) if as_text else [5] * tokens  # the tokenizer puts one before a text
        return served.client.post(TEXT, json={"prompt": prompt, "echo": True, "logprobs": 1, **body})

    body = echoed(FACTS.context, max_tokens=0).json()
    assert len(body["choices"][0]["logprobs"]["tokens"]) == FACTS.context and body["usage"]["completion_tokens"] == 0
    for tokens, max_tokens, most in ((FACTS.context + 1, 0, FACTS.context), (FACTS.context, 1, FACTS.context - 1)):
        error = echoed(tokens, max_tokens=max_tokens).json()["error"]
        assert error["code"] == "context_length_exceeded" and error["message"].endswith(f"send at most {most}")


def test_an_echo_can_be_streamed(served: Any) -> None:
    for max_tokens, text in ((2, "ab3/0/0 3/0/1 "), (0, "ab")):
        fields = {"model": "fake", "prompt": "ab", "echo": True, "max_tokens": max_tokens, "logprobs": 0, "stream": True, "seed": 0}
        choices = [chunk.choices[0] for chunk in client(served).completions.create(**fields)]
        assert "".join(choice.text for choice in choices) == text
        rows = [value for choice in choices if choice.logprobs for value in choice.logprobs.token_logprobs]
        assert rows[0] is None and len(rows) == 3 + max_tokens
        assert choices[-1].finish_reason == "length"


def test_best_of_returns_the_best_and_counts_all(served: Any) -> None:
    """The fake engine gives answers with a larger seed a higher log-probability."""
    body = text_of(served, prompt=["a", "bc"], n=1, best_of=2, seed=2)
    assert [(choice["index"], choice["text"][:4]) for choice in body["choices"]] == [(0, "2/3/"), (1, "3/3/")]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (5, 12)
    assert body["choices"][0]["logprobs"] is None
    two = text_of(served, prompt="a", n=2, best_of=4, seed=0, logprobs=0)["choices"]
    assert [choice["text"][:4] for choice in two] == ["2/3/", "2/2/"]
    assert [len(choice["logprobs"]["tokens"]) for choice in two] == [3, 3]
    assert [choice["text"][:4] for choice in text_of(served, prompt="a", n=2, best_of=2)["choices"]] == ["2/0/", "2/1/"]


def test_usage_says_what_was_cached(served: Any) -> None:
    served.engine.cached_tokens = 2
    for path, body in ((CHAT, {"messages": HELLO, "max_tokens": 1}), (TEXT, {"prompt": ["abc", "def"], "max_tokens": 1})):
        details = {"cached_tokens": 2 if path == CHAT else 4}
        assert served.client.post(path, json={**body, "n": 2}).json()["usage"]["prompt_tokens_details"] == details
    text = served.client.post(TEXT, json={"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}).text
    assert '"prompt_tokens_details":{"cached_tokens":2}' in text


def test_a_waiting_request_gets_its_queue_position_as_comments(served: Any) -> None:
    served.engine.queue_steps = 3
    blocks = served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 1, "stream": True}).text.split("\n\n")
    assert blocks[:3] == [": queued position=3", ": queued position=2 eta_s=1", ": queued position=1 eta_s=1"]
    assert not any(block.startswith(":") for block in blocks[4:])
    assert served.client.post(TEXT, json={"prompt": "a", "max_tokens": 1}).json()["usage"]["completion_tokens"] == 1
    assert [chunk.choices[0].finish_reason for chunk in client(served).completions.create(model="fake", prompt="a", stream=True)][-1]
    assert served.client.post("/v1/score", json={"text": "abc"}).json()["data"][0]["scored_tokens"] == 3


def test_no_queue_position_is_sent_once_an_answer_has_started_but_that_it_was_set_back(served: Any) -> None:
    async def main() -> list[str]:
        async def events() -> AsyncIterator[Event]:
            for event in (
                Waiting("a", 1, 0.2),
                Delta("a", "x", (5,)),
                Waiting("b", 1, 9.0),
                SetBack("a"),
                Delta("b", "y", (6,), "stop"),
                Delta("a", "", (), "stop"),
            ):
                yield event

        options, prompt = AnswerOptions(chat=False, n=2, samples=2), Prompt((1,))
        return [line async for line in stream(Answer("id", FACTS, options, [prompt], ["a", "b"], served.tokenizer), events(), False)]

    assert [line.strip() for line in asyncio.run(main()) if line.startswith(":")] == [
        ": queued position=1 eta_s=1",
        ": set back: the cache is full; the answer goes on when there is room",
    ]


@pytest.mark.parametrize(
    ("path", "body", "param", "message_part"),
    [
        (CHAT, {"logprobs": 1}, "logprobs", "valid boolean"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
        (CHAT, {"logprobs": False, "top_logprobs": 1}, "top_logprobs", "needs logprobs: true"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (TEXT, {"logprobs": True}, "logprobs", "valid integer"),
        (TEXT, {"logprobs": 21}, "logprobs", "less than or equal to 20"),
        (TEXT, {"logprobs": -1}, "logprobs", "greater than or equal to 0"),
        (TEXT, {"echo": "yes"}, "echo", "valid boolean"),
        (TEXT, {"max_tokens": 0}, "max_tokens", "only with echo"),
        (TEXT, {"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens", "at most 0 tokens"),
        (TEXT, {"best_of": 17}, "best_of", "less than or equal to 16"),
        (TEXT, {"best_of": 0}, "best_of", "greater than or equal to 1"),
        (TEXT, {"best_of": 1, "n": 2}, "best_of", "must be at least n"),
        (TEXT, {"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        (TEXT, {"best_of": 6}, "best_of", "at most 5"),
    ],
)
def test_wrong_values_are_named(served: Any, path: str, body: dict[str, Any], param: str | None, message_part: str) -> None:
    given = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    response = served.client.post(path, json={**given, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message_part in error["message"]
    assert served.engine.submitted == []


def test_a_probability_of_zero_is_written_as_openai_does(served: Any) -> None:
    entries = [LogprobEntry(2, -math.inf, ((3, -math.inf),), 0)]
    assert chat_logprobs(entries, [], served.tokenizer).content[0].top_logprobs[0].logprob == MIN_LOGPROB
    logprobs = completion_logprobs(entries, served.tokenizer)
    assert (logprobs.token_logprobs, logprobs.top_logprobs) == ([MIN_LOGPROB], [{'"': MIN_LOGPROB, "!": MIN_LOGPROB}])


def test_of_two_tokens_with_the_same_text_the_more_likely_is_kept(served: Any) -> None:
    entries = [LogprobEntry(2, -3.0, ((10_000, -1.0), (10_001, -2.0)), 0)]
    assert completion_logprobs(entries, served.tokenizer).top_logprobs == [{"": -1.0, "!": -3.0}]


def test_tracked_offsets_equal_those_of_the_decoded_text(served: Any) -> None:
    tokenizer: Tokenizer = served.tokenizer
    ids = [*tokenizer.encode("na\u00efve \U0001f600!", "prompt"), *tokenizer.encode("\u732b", "prompt")[1:3]]  # ends inside a character
    offsets = OffsetTracker(tokenizer)
    starts = [offsets.push(id) for id in ids]
    text = tokenizer.decode(ids)
    for place, start in enumerate(starts):
        before = tokenizer.decode(ids[:place]).rstrip("\ufffd")
        assert text.startswith(before) and start == len(before)


def test_a_space_that_the_first_token_drops_is_not_counted(served: Any) -> None:
    served.tokenizer._pieces[5] = Piece(b" a", b"a", False)
    offsets = OffsetTracker(served.tokenizer)
    assert [offsets.push(token) for token in (0, 5, 5, 2)] == [0, 0, 1, 3]
