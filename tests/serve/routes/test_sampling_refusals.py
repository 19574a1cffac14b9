"""Sampling fields: an invalid value, or a field of another route, is refused with the name of its field."""

from typing import Any

import pytest

CHAT, TEXT, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"
RESPONSES, MESSAGES, GENERATE = "/v1/responses", "/v1/messages", "/generate"
HELLO = [{"role": "user", "content": "hi"}]
MANY = [*range(2, 131)]  # one more than allowed


@pytest.mark.parametrize(
    ("fields", "param", "message_part"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty", "less than or equal to 2"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "greater than or equal to -2"),
        ({"frequency_penalty": "1"}, "frequency_penalty", "valid number"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"repetition_penalty": 11}, "repetition_penalty", "less than or equal to 10"),
        ({"logit_bias": {"258": 1}}, "logit_bias", "258 is not in the vocabulary; token ids must lie in 0..257"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "'-1' is no token id"),
        ({"logit_bias": {"fox": 1}}, "logit_bias", "'fox' is no token id"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias", "is no token id"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "is no token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "valid number"),
        ({"logit_bias": [5]}, "logit_bias", "valid dictionary"),
        ({"logit_bias": {str(id): 1 for id in range(1025)}}, "logit_bias", "at most 1024"),
        ({"bad_words": ["a", ""]}, "bad_words.1", "at least 1 character"),
        ({"bad_words": ["a" * 257]}, "bad_words.0", "at most 256 characters"),
        ({"bad_words": ["a"] * 129}, "bad_words", "at most 128 items"),
        ({"bad_words": "a"}, "bad_words", "valid list"),
        ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
        ({"min_tokens": 9}, "min_tokens", "min_tokens is 9, but the answer may have at most 8 tokens"),
        ({"stop_token_ids": [258]}, "stop_token_ids", "258 is not in the vocabulary"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0", "greater than or equal to 0"),
        ({"stop_token_ids": [True]}, "stop_token_ids.0", "valid integer"),
        ({"stop_token_ids": MANY}, "stop_token_ids", "at most 128 items"),
        ({"ignore_eos": 1}, "ignore_eos", "valid boolean"),
        ({"seed": 2**63}, "seed", "less than or equal to 9223372036854775807"),
        ({"stop": 5}, "stop", "valid string or a valid list"),
        ({"stop": ["a", 5]}, "stop.1", "valid string"),
        ({"stop": ["a"] * 33}, "stop", "at most 32 items"),
        ({"repeat_penalty": 0}, "repeat_penalty", "greater than or equal to 0.01"),
        ({"add_special_tokens": 1}, "add_special_tokens", "valid boolean"),
        ({"service_tier": "fast"}, "service_tier", "'auto', 'default', 'flex'"),
    ],
)
def test_wrong_values_are_named(served: Any, fields: dict[str, Any], param: str, message_part: str) -> None:
    for path, body in ((TEXT, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        response = served.client.post(path, json={**body, "max_tokens": 8, **fields})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert message_part in error["message"]
    assert served.engine.submitted == []


def test_the_bound_of_min_tokens_is_what_the_context_leaves(served: Any) -> None:
    error = served.client.post(CHAT, json={"messages": HELLO, "min_tokens": 60}).json()["error"]
    assert "at most 59 tokens" in error["message"]


def test_a_lone_surrogate_in_a_bad_word_is_named(served: Any) -> None:
    content = b'{"prompt": "a", "bad_words": ["b", "\\ud800"]}'
    response = served.client.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "bad_words.1")


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (SCORE, {"text": "a", "service_tier": "fast"}, "invalid_value"),
        (SCORE, {"text": "a", "logprobs": 1}, "unsupported_parameter"),
        (CHAT, {"messages": HELLO, "echo": True}, "unsupported_parameter"),
        (CHAT, {"messages": HELLO, "best_of": 2}, "unsupported_parameter"),
        (TEXT, {"prompt": "a", "top_logprobs": 2}, "unsupported_parameter"),
        (SCORE, {"text": "a", "response_format": {}}, "unsupported_parameter"),
        (TEXT, {"prompt": "a", "tools": [{}]}, "unsupported_parameter"),
        (TEXT, {"prompt": "a", "metadata": {"a": "b"}}, "unsupported_parameter"),
        (TEXT, {"prompt": "a", "n_probs": 2}, "unsupported_parameter"),
    ],
)
def test_fields_of_other_routes_are_refused(served: Any, path: str, body: Any, code: str) -> None:
    response = served.client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    ("path", "fields", "instead"),
    [
        (RESPONSES, {"n_predict": 9}, "max_output_tokens"),
        (CHAT, {"ebnf": "root ::= 'a'"}, "structured_outputs"),
        (RESPONSES, {"guided_json": {}}, "text.format"),
        (CHAT, {"prompt": "a"}, "messages"),
        (TEXT, {"max_new_tokens": 9}, "max_tokens"),
        (TEXT, {"messages": []}, "prompt"),
        (RESPONSES, {"max_tokens": 9}, "max_output_tokens"),
        (RESPONSES, {"response_format": {"type": "json_object"}}, "text.format"),
        (MESSAGES, {"stop": "a"}, "stop_sequences"),
        (GENERATE, {"repeat_penalty": 2}, "repetition_penalty"),
    ],
)
def test_a_field_of_another_api_is_refused_with_the_name_that_it_has_here(served: Any, path: str, fields: Any, instead: str) -> None:
    least = {CHAT: {"messages": HELLO}, MESSAGES: {"messages": HELLO, "max_tokens": 1}, RESPONSES: {"input": "a"}}.get(
        path, {"prompt": "a"}
    )
    error = served.client.post(path, json={**least, **fields}).json()["error"]
    assert error["message"] == f"parameter '{next(iter(fields))}' is not supported by {path}; use {instead}"


@pytest.mark.parametrize(
    ("prompt", "param", "said"),
    [
        (5, "prompt", "valid string or a valid list"),
        ([1, "a"], "prompt.1", "valid integer"),
        (["a", 1], "prompt.1", "valid string"),
        ([[1], ["a"]], "prompt.1.0", "valid integer"),
        ([None], "prompt.0", "valid string or a valid integer or a valid list"),
    ],
)
def test_of_a_field_with_several_types_the_place_that_fits_none_is_named(served: Any, prompt: Any, param: str, said: str) -> None:
    error = served.client.post(TEXT, json={"prompt": prompt}).json()["error"]
    assert (error["param"], error["message"]) == (param, f"'{param}': Input should be a {said}")
