"""Whole requests through the real routes, router and middleware, over a fake engine."""

import json
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SCORE = "/v1/score"
HELLO = [{"role": "user", "content": "hi"}]


def lines(body: str) -> list[Any]:
    """The events of a stream, parsed; the last must be [DONE]."""
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(line) for line in events[:-1]]


def test_a_chat_answers_in_openais_form(served: Any) -> None:
    body = served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 3, "seed": 7, "model": "fake"}).json()
    assert body["object"] == "chat.completion"
    message = {
        "role": "assistant",
        "content": "5/7/0 5/7/1 5/7/2 ",
        "reasoning_content": None,
        "reasoning": None,
        "refusal": None,
        "tool_calls": None,
    }
    of_tokens = {"stop_reason": None, "token_ids": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length", **of_tokens}]
    counts = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    completion = {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": completion}
    assert body["usage"] == {**counts, **details}


def test_an_empty_name_is_the_default_model(served: Any) -> None:
    for path, body in (
        (CHAT, {"messages": HELLO, "max_tokens": 1}),
        (TEXT, {"prompt": "a", "max_tokens": 1}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1}),
        ("/v1/embeddings", {"input": "a"}),
    ):
        answer = served.client.post(path, json={**body, "model": ""})
        assert (answer.status_code, answer.json()["model"]) == (200, "fake"), answer.text
    assert served.client.post(TEXT, json={"prompt": "a", "model": " "}).status_code == 404


def test_a_stream_has_one_id_a_role_a_finish_usage_and_an_end(served: Any) -> None:
    fields = {"messages": HELLO, "max_tokens": 3, "seed": 7, "stream": True, "stream_options": {"include_usage": True}}
    response = served.client.post(CHAT, json=fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = lines(response.text)
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert text == "5/7/0 5/7/1 5/7/2 "
    finishes = [choice["finish_reason"] for event in events for choice in event["choices"]]
    assert finishes == [None, None, None, None, "length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in events[:-1])


def test_n_answers_are_seeded_apart_and_keep_their_index(served: Any) -> None:
    body = served.client.post(TEXT, json={"prompt": ["ab", "cde"], "n": 2, "max_tokens": 1, "seed": 10}).json()
    assert [choice["text"] for choice in body["choices"]] == ["3/10/0 ", "3/11/0 ", "4/10/0 ", "4/11/0 "]
    assert body["usage"]["completion_tokens"] == 4
    events = lines(served.client.post(TEXT, json={"prompt": "ab", "n": 2, "max_tokens": 2, "seed": 10, "stream": True}).text)
    texts = ["", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["3/10/0 3/10/1 ", "3/11/0 3/11/1 "]


def test_token_ids_are_prompts_too(served: Any) -> None:
    assert served.client.post(TEXT, json={"prompt": [5, 6, 7], "max_tokens": 1, "seed": 1}).json()["choices"][0]["text"] == "3/1/0 "
    both = served.client.post(TEXT, json={"prompt": [[5], [6, 7]], "max_tokens": 1, "seed": 1}).json()
    assert [choice["text"] for choice in both["choices"]] == ["1/1/0 ", "2/1/0 "]


def test_without_a_seed_answers_differ(served: Any) -> None:
    texts = {served.client.post(TEXT, json={"prompt": "a", "max_tokens": 1}).json()["choices"][0]["text"] for _ in range(5)}
    assert len(texts) == 5


def test_an_answer_without_a_limit_may_fill_the_context(served: Any) -> None:
    assert served.client.post(CHAT, json={"messages": HELLO}).json()["usage"]["total_tokens"] == 64
    for length, answer in ((60, 3), (1, 16)):  # a completion without a limit has at most 16 tokens
        usage = served.client.post(TEXT, json={"prompt": "a" * length, "ignore_eos": True}).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (length + 1, answer)


def test_scores_keep_their_order_and_their_text(served: Any) -> None:
    body = served.client.post(SCORE, json={"texts": ["bbb", "a", "d d"], "granularity": "token"}).json()
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    assert ["".join(token["text"] for token in item["tokens"]) for item in body["data"]] == ["bbb", "a", "d d"]
    assert {item["verdict"] for item in body["data"]} == {"insufficient"}
    assert {item["method"] for item in body["data"]} == {"binoculars"}
    assert body["usage"]["prompt_tokens"] == 4 + 2 + 4


def test_one_failing_text_is_a_value_among_the_others(served: Any) -> None:
    body = served.client.post(SCORE, json={"texts": ["good", "b~d", "fine"]}).json()
    assert [item["object"] for item in body["data"]] == ["score", "error", "score"]
    assert body["data"][1] == {"index": 1, "object": "error", "message": "poisoned", "code": "engine_failed"}


def test_a_text_longer_than_the_window_is_scored_in_windows(served: Any) -> None:
    (item,) = served.client.post(SCORE, json={"text": "abc " * 50, "methods": ["log_rank"]}).json()["data"]
    assert (item["scored_tokens"], item["verdict"]) == (200, "uncalibrated")
    assert item["windows"] > 1


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message_part"),
    [
        (TEXT, {"prompt": ""}, 400, "prompt", "empty"),
        (TEXT, {"prompt": []}, 400, "prompt", "empty"),
        (TEXT, {"prompt": ["a", ""]}, 400, "prompt", "empty"),
        (TEXT, {"prompt": [9999]}, 400, "prompt", "token ids must lie in 0..257"),
        (TEXT, {"prompt": "a" * 64}, 400, "prompt", "holds 64, one of them for the answer: send at most 63"),
        (TEXT, {"prompt": "a", "max_tokens": 63}, 400, "max_tokens", "ask for at most 62"),
        (TEXT, {"prompt": "a", "model": "gpt-4"}, 404, "model", "this server has 'fake'"),
        (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix", "not supported"),
        (TEXT, {"prompt": "a", "max_tokens": "many"}, 400, "max_tokens", "integer"),
        (TEXT, {"prompt": "a", "temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        (TEXT, {"prompt": "a", "top_p": -0.1}, 400, "top_p", "greater than or equal to 0"),
        (TEXT, {"prompt": "a", "n": 0}, 400, "n", "greater than or equal to 1"),
        (TEXT, {"prompt": "a", "n": 6}, 400, "n", "at most 5"),
        (TEXT, {"prompt": "a", "n": 1, "best_of": 6}, 400, "best_of", "at most 5"),
        (TEXT, {"prompt": "a", "stop": ["a" * 257]}, 400, None, "at most 256 characters"),
        (TEXT, {"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens", "integer"),
        (TEXT, {"prompt": "a", "max_tokens": True}, 400, "max_tokens", "integer"),
        (TEXT, {"prompt": "a", "stream_options": {}}, 400, "stream_options", "needs stream"),
        (TEXT, {}, 400, "prompt", "missing"),
        (TEXT, {"prompt": [True]}, 400, "prompt.0", "valid"),
        (TEXT, {"prompt": "a", "temperature": "0.5"}, 400, "temperature", "valid number"),
        (TEXT, [], 400, None, "JSON object"),
        (CHAT, {"messages": []}, 400, "messages", "at least 1 item"),
        (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages.0.role", "'system'"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1, or -1"),
        (CHAT, {"messages": HELLO, "n_predict": -2}, 400, "n_predict", "greater than or equal to -1"),
        (CHAT, {"messages": HELLO, "audio": {}}, 400, "audio", "not supported"),
        (
            CHAT,
            {"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2},
            400,
            "max_completion_tokens",
            "max_completion_tokens contradict",
        ),
        (CHAT, {"messages": HELLO, "max_tokens": 1, "n_predict": 2}, 400, "n_predict", "max_tokens and n_predict contradict"),
        (TEXT, {"prompt": "a", "max_tokens": 1, "n_predict": 2}, 400, "n_predict", "max_tokens and n_predict contradict"),
        (
            TEXT,
            {"prompt": "a", "repetition_penalty": 1.5, "repeat_penalty": 1.2},
            400,
            "repeat_penalty",
            "repetition_penalty and repeat_penalty",
        ),
        (TEXT, {"prompt": "a", "n_predict": 0}, 400, "max_tokens", "at least 1"),
        (SCORE, {"texts": []}, 400, "texts", "at least 1 item"),
        (SCORE, {"texts": ["a"] * 257}, 400, "texts", "256"),
        (SCORE, {"text": "a", "texts": ["a"]}, 400, None, "either text or texts"),
        (SCORE, {}, 400, None, "either text or texts"),
        (SCORE, {"text": ["a"]}, 400, "text", "a list of texts goes into texts"),
        (SCORE, {"texts": "a"}, 400, "texts", "one text goes into text"),
        (SCORE, {"text": "a", "methods": ["magic"]}, 400, "methods.0", "binoculars"),
        (SCORE, {"text": "a", "target_fpr": 0.01}, 400, "target_fpr", "calibration"),
        (SCORE, {"text": "a", "target_fpr": 0}, 400, "target_fpr", "greater than 0"),
        (SCORE, {"text": "a", "granularity": "word"}, 400, "granularity", "sentence"),
    ],
)
def test_bad_input_is_named(served: Any, path: str, body: Any, status: int, param: str | None, message_part: str) -> None:
    response = served.client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert message_part in error["message"]
    assert param is None or error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert served.router.in_flight == 0


def test_white_space_is_a_prompt(served: Any) -> None:
    chat = {"messages": [{"role": "user", "content": " "}], "max_tokens": 2}
    for path, body in ((TEXT, {"prompt": ["\n", " "], "max_tokens": 2}), (CHAT, chat), ("/generate", {"prompt": "\n", "max_length": 2})):
        answer = served.client.post(path, json=body)
        assert answer.status_code == 200, answer.text


def test_more_answers_than_may_be_in_flight_are_refused_before_any_is_prepared(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.routes.completions.prompts_of", None)
    error = served.client.post(TEXT, json={"prompt": [[5]] * 2000, "n": 16, "max_tokens": 1}).json()["error"]
    assert error["param"] == "prompt" and "may be in flight" in error["message"] and not served.engine.submitted


def test_a_prompt_longer_than_the_context_is_refused_before_its_tokens_are_looked_at(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.wire.requests.check_token_ids", None)
    error = served.client.post(TEXT, json={"prompt": [5] * 65, "max_tokens": 1, "echo": True}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_nulls_are_as_if_left_out(served: Any) -> None:
    nothing = dict.fromkeys(["n", "stream", "stream_options", "stop", "seed", "user", "temperature", "logit_bias"])
    text = {"prompt": "a", "suffix": None, "max_tokens": None, "best_of": None, "echo": None, "logprobs": None}
    chat = {"messages": [{"role": "assistant", "content": "a", "tool_calls": []}, *HELLO], "max_tokens": 2, "tools": None, "metadata": None}
    for path, body in ((TEXT, text), (CHAT, chat | {"response_format": None, "tool_choice": None, "parallel_tool_calls": None})):
        answer = served.client.post(path, json={**body, **nothing})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["choices"]) == 1
    assert served.engine.submitted[0].max_tokens == 16


@pytest.mark.parametrize(
    ("content", "status", "message_part"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "missing"),
        (b'{"prompt": "\xff\xfe"}', 400, "UTF-8"),
        (b'{"prompt": "\\ud800"}', 400, "lone surrogate"),
        (b'{"prompt": "a", "model": "\\ud800"}', 404, "is not served here"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
        (b"x" * 25_000, 413, "larger than 20000 bytes"),
    ],
)
def test_bad_bytes_are_explained(served: Any, content: bytes, status: int, message_part: str) -> None:
    response = served.client.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, message_part in response.json()["error"]["message"]) == (status, True)


def test_unknown_routes_and_methods_are_refused(served: Any) -> None:
    assert served.client.get("/nope").json()["error"]["code"] == "not_found"
    assert served.client.get(SCORE).status_code == 405
    assert served.client.get("/v1/models/none").status_code == 404


def test_an_internal_error_is_a_500_without_its_traceback(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.routes.score.build_score", lambda *_: 1 / 0)
    response = served.client.post(SCORE, json={"text": "secret words"})
    assert response.status_code == 500
    assert "ZeroDivision" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
