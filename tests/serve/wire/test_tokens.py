"""What answers tell of single tokens, by vLLM's names: their ids, what ended the answer, log-probabilities of the prompt, allowed ones."""

import json
from typing import Any

import pytest

from app.errors import InvalidRequest
from app.schemas import CompletionRequest
from serve.wire.requests import check_prompt_entries, completion_options

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
PROMPT_IDS = [0, *(ord(letter) - ord("!") + 2 for letter in "u:hi")]  # as the tiny model's template and tokenizer have it
END, STOP = 1, 40  # the model's own end, and any other token


def post(served: Any, path: str, **body: Any) -> dict[str, Any]:
    response = served.client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chunks(served: Any, path: str, **body: Any) -> list[dict[str, Any]]:
    response = served.client.post(path, json={**body, "stream": True})
    data = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(each) for each in data[:-1]]


def refused(served: Any, path: str, **body: Any) -> tuple[str, str]:
    response = served.client.post(path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


def end_with(served: Any, *tokens: int, stop_string: str | None = None) -> None:
    """Script an answer of one text that ends with these tokens."""
    served.engine.script, served.engine.stop_string = [("one ", (5,)), ("two", tokens)], stop_string


def test_a_chat_returns_the_ids_of_prompt_and_answers(served: Any) -> None:
    answer = post(served, CHAT, messages=HELLO, max_tokens=3, n=2, return_token_ids=True)
    assert answer["prompt_token_ids"] == PROMPT_IDS
    assert [choice["token_ids"] for choice in answer["choices"]] == [[2, 3, 4], [2, 3, 4]]
    plain = post(served, CHAT, messages=HELLO, max_tokens=3)
    assert (plain["prompt_token_ids"], plain["prompt_logprobs"], plain["choices"][0]["token_ids"]) == (None, None, None)


def test_a_completion_has_the_ids_of_each_prompt_beside_its_answers(served: Any) -> None:
    answer = post(served, TEXT, prompt=["a", "bc"], max_tokens=2, n=2, return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[0, 66], [0, 66], [0, 67, 68], [0, 67, 68]]
    assert all(choice["token_ids"] == [2, 3] for choice in answer["choices"])
    echo = post(served, TEXT, prompt="a", max_tokens=0, echo=True, return_token_ids=True)["choices"][0]
    assert (echo["text"], echo["prompt_token_ids"], echo["token_ids"]) == ("a", [0, 66], [])


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_has_the_prompts_ids_first_and_no_token_twice(served: Any, path: str) -> None:
    served.engine.script = [("", (9,)), ("two", (10, 11)), ("", (12,))]
    prompt: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "u:hi"}
    sent = [chunk for chunk in chunks(served, path, **prompt, n=2, return_token_ids=True) if chunk["choices"]]
    for index in (0, 1):
        own = [chunk for chunk in sent if chunk["choices"][0]["index"] == index]
        ids = [(chunk if path == CHAT else chunk["choices"][0]).get("prompt_token_ids") for chunk in own]
        assert ids == [PROMPT_IDS, *[None] * (len(own) - 1)]
        assert [token for chunk in own for token in chunk["choices"][0].get("token_ids", [])] == [9, 10, 11, 12]
    assert not any("token_ids" in chunk["choices"][0] for chunk in chunks(served, path, **prompt))


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("tokens", "stop_string", "fields", "reason"),
    [
        ((7, 8), "wo", {"stop": ["wo"]}, "wo"),
        ((7, STOP), None, {"stop_token_ids": [STOP]}, STOP),
        ((7, END), None, {"stop_token_ids": [STOP]}, None),
        ((7, END), None, {"stop_token_ids": [END]}, None),
        ((7, END), None, {"stop_token_ids": [END], "ignore_eos": True}, END),
    ],
)
def test_the_reason_of_a_stop_is_the_string_or_token_that_was_asked_for(
    served: Any, path: str, tokens: tuple[int, ...], stop_string: str | None, fields: dict[str, Any], reason: str | int | None
) -> None:
    end_with(served, *tokens, stop_string=stop_string)
    prompt: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    choice = post(served, path, **prompt, **fields)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", reason)
    last = chunks(served, path, **prompt, **fields)[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", reason)


def test_an_answer_that_is_cut_has_no_reason_of_a_stop(served: Any) -> None:
    choice = post(served, TEXT, prompt="a", max_tokens=2, stop_token_ids=[3])["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)


@pytest.mark.parametrize(
    ("tokens", "stop_string", "fields", "text"),
    [
        ((7, 8), "</a>", {"stop": "</a>"}, "one two</a>"),
        ((7, STOP), None, {"stop_token_ids": [STOP]}, "one twoG"),
        ((7, END), None, {}, "one two"),  # a special token has no text
        ((7, STOP), None, {}, "one two"),  # it did not end the answer
    ],
)
def test_what_ended_an_answer_stays_in_its_text_on_demand(
    served: Any, tokens: tuple[int, ...], stop_string: str | None, fields: dict[str, Any], text: str
) -> None:
    end_with(served, *tokens, stop_string=stop_string)
    for path, prompt in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
        kept = post(served, path, **prompt, **fields, include_stop_str_in_output=True)["choices"][0]
        cut = post(served, path, **prompt, **fields)["choices"][0]
        texts = [choice["text"] if path == TEXT else choice["message"]["content"] for choice in (kept, cut)]
        assert texts == [text, "one two"]
        sent = chunks(served, path, **prompt, **fields, include_stop_str_in_output=True)
        pieces = [chunk["choices"][0].get("text") or chunk["choices"][0].get("delta", {}).get("content") or "" for chunk in sent]
        assert "".join(pieces) == text


def test_a_prompt_has_its_log_probabilities_in_vllms_form(served: Any) -> None:
    """The fake engine's own token is the second likeliest."""
    answer = post(served, CHAT, messages=HELLO, max_tokens=1, n=2, prompt_logprobs=2)
    none, u, *others = answer["prompt_logprobs"]
    assert none is None and len(others) == len(PROMPT_IDS) - 2
    token = PROMPT_IDS[1]
    assert list(u) == [str(token), str(token + 1)]
    assert u[str(token)] == {"logprob": -token / 100, "rank": 2, "decoded_token": "u"}
    assert u[str(token + 1)] == {"logprob": pytest.approx(-token / 100 + 0.5), "rank": 1, "decoded_token": "v"}
    assert [job.prompt_logprobs for job in served.engine.submitted] == [2, None]


def test_a_token_beyond_those_asked_for_has_no_rank(served: Any) -> None:
    choices = post(served, TEXT, prompt=["a", "bc"], max_tokens=1, n=2, prompt_logprobs=0)["choices"]
    entry = {"logprob": -0.66, "rank": None, "decoded_token": "a"}
    assert choices[0]["prompt_logprobs"] == choices[1]["prompt_logprobs"] == [None, {"66": entry}]
    assert [len(choice["prompt_logprobs"]) for choice in choices] == [2, 2, 3, 3]


def test_an_echo_keeps_its_own_number_of_likeliest_tokens(served: Any) -> None:
    choice = post(served, TEXT, prompt="a", max_tokens=0, echo=True, logprobs=1, prompt_logprobs=2)["choices"][0]
    assert served.engine.submitted[-1].prompt_logprobs == 2 and len(choice["prompt_logprobs"][1]) == 2
    assert choice["logprobs"]["top_logprobs"][1] == {"b": pytest.approx(-0.16), "a": pytest.approx(-0.66)}


@pytest.mark.parametrize(
    ("fields", "tokens", "param"),
    [
        ({"prompt_logprobs": 20, "logprobs": 20, "echo": True}, 32_000, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "logprobs": 20, "echo": True}, 32_000, "logprobs"),
        ({"prompt_logprobs": 20, "n": 16}, 1500, "prompt_logprobs"),
        ({"logprobs": 4, "echo": True, "n": 2, "best_of": 4}, 25_001, "logprobs"),
        ({"logprobs": 4, "echo": True, "n": 2, "best_of": 4}, 25_000, None),
        ({"prompt_logprobs": 4, "n": 4}, 25_000, None),
        ({"logprobs": 20}, 10**6, None),
        ({"echo": True}, 10**6, None),
    ],
)
def test_how_many_log_probabilities_of_prompts_an_answer_may_list(fields: dict[str, Any], tokens: int, param: str | None) -> None:
    options = completion_options(CompletionRequest(prompt="a", **fields))
    if param is None:
        return check_prompt_entries(options, tokens)
    with pytest.raises(InvalidRequest, match="at most 500,000 are supported") as error:
        check_prompt_entries(options, tokens)
    assert error.value.param == param
    return None


def test_too_many_log_probabilities_are_refused_before_a_job_is_made(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.wire.requests.MAX_PROMPT_ENTRIES", 9)
    param, message = refused(served, TEXT, prompt=["a", "bc"], prompt_logprobs=1)
    assert (param, served.engine.submitted) == ("prompt_logprobs", []) and "10 log-probabilities of the 5 tokens" in message
    assert refused(served, CHAT, messages=HELLO, prompt_logprobs=1, n=2)[0] == "prompt_logprobs"
    post(served, TEXT, prompt=["a", "bc"], prompt_logprobs=0)


def test_allowed_tokens_reach_the_engine(served: Any) -> None:
    for path, prompt in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
        post(served, path, **prompt, max_tokens=1, allowed_token_ids=[7, 5, 7])
        assert served.engine.submitted[-1].sampling.allowed_tokens == (7, 5)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1"),
        ({"allowed_token_ids": [100_000]}, "allowed_token_ids", "100000 is not in the vocabulary"),
        ({"allowed_token_ids": [END], "min_tokens": 1}, "allowed_token_ids", "leave none of them"),
        ({"allowed_token_ids": [66], "bad_words": ["a"]}, "allowed_token_ids", "leave none of them"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "cannot be streamed"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "greater than or equal to 0"),
        ({"return_token_ids": "yes"}, "return_token_ids", "valid boolean"),
    ],
)
def test_what_cannot_be_is_refused_by_name(served: Any, fields: dict[str, Any], param: str, says: str) -> None:
    for path, prompt in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
        named, message = refused(served, path, **prompt, max_tokens=2, **fields)
        assert named == param and says in message


def test_a_form_decides_itself_which_tokens_may_come(tooled: Any) -> None:
    for name in ("return_token_ids", "include_stop_str_in_output"):
        post(tooled, CHAT, messages=HELLO, max_tokens=30, response_format={"type": "json_object"}, **{name: True})
    body = {"messages": HELLO, "response_format": {"type": "json_object"}, "allowed_token_ids": [5]}
    assert refused(tooled, CHAT, **body)[0] == "allowed_token_ids"


def test_a_limited_thought_needs_its_closing_mark(thinking: Any) -> None:
    assert refused(thinking, CHAT, messages=HELLO, thinking_token_budget=5, allowed_token_ids=[5])[0] == "allowed_token_ids"


def test_other_routes_refuse_them_by_name(served: Any) -> None:
    for name, value in {"return_token_ids": True, "allowed_token_ids": [5], "prompt_logprobs": 1}.items():
        assert refused(served, "/v1/responses", input="hi", **{name: value})[0] == name
