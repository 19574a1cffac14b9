"""Structured output and tool calls in every precision; and letters of several bytes, which tokens and streams may cut."""

import itertools
import json
import re
from typing import Any

import jsonschema
import pytest
from drafting import free_rows
from inprocess import CHAT, LocalModel

ASK = [{"role": "user", "content": "Who stole the cheese?"}]
WILD: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 120}
THIEF: dict[str, Any] = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "crow", "wolf"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "mark": {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]$"},
        "guilty": {"type": "boolean"},
        "loot": {"type": "array", "items": {"anyOf": [{"const": "cheese"}, {"type": "null"}]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["animal", "age", "mark", "guilty", "loot"],
    "additionalProperties": False,
}
PLACE = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 8}}, "required": ["place"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather at a place.", "parameters": PLACE}}
BELL = {"type": "function", "function": {"name": "ring_bell", "description": "Ring the bell."}}
LETTERS = "☕ 猫 😀 naïve 𝄞!"


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def content_of(chunks: list[dict[str, Any]]) -> list[str]:
    return [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]


def test_an_answer_follows_its_schema_whole_and_streamed(model: LocalModel) -> None:
    for seed in range(2):
        fields = {"messages": ASK, "response_format": format_of(THIEF), "seed": seed, **WILD}
        choice = model.post(CHAT, **fields)["choices"][0]
        answer = json.loads(choice["message"]["content"])
        jsonschema.validate(answer, THIEF)
        assert choice["finish_reason"] == "stop" and re.fullmatch("[a-c]{2,4}-[0-9]", answer["mark"])
        assert "".join(content_of(model.stream(CHAT, **fields))) == choice["message"]["content"]


def test_a_grammar_leaves_log_probabilities_alone_and_ends_where_it_must(model: LocalModel) -> None:
    choice = model.post(CHAT, messages=ASK, response_format=format_of({"const": "fox"}), logprobs=True, top_logprobs=1, **WILD)["choices"][
        0
    ]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('"fox"', "stop")
    entries = choice["logprobs"]["content"]
    assert any(entry["logprob"] < entry["top_logprobs"][0]["logprob"] for entry in entries)
    cut = model.post(CHAT, messages=ASK, response_format=format_of({"const": "fox"}), **{**WILD, "max_tokens": 1})["choices"][0]
    assert cut["finish_reason"] == "length" and '"fox"'.startswith(cut["message"]["content"])


def test_any_json_object(model: LocalModel) -> None:
    choice = model.post(CHAT, messages=ASK, response_format={"type": "json_object"}, seed=1, **WILD)["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called_with_valid_arguments_whole_and_streamed(model: LocalModel, choice: Any) -> None:
    fields = {"messages": ASK, "tools": [WEATHER, BELL], "tool_choice": choice, "parallel_tool_calls": False, "seed": 2, **WILD}
    answer = model.post(CHAT, **fields)["choices"][0]
    assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
    (call,) = answer["message"]["tool_calls"]
    schema = {"weather": PLACE, "ring_bell": {"maxProperties": 0}}[call["function"]["name"]]
    jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    assert choice == "required" or call["function"]["name"] == "weather"
    deltas = [choice["delta"] for chunk in model.stream(CHAT, **fields) for choice in chunk["choices"]]
    pieces = [piece["function"] for delta in deltas for piece in delta.get("tool_calls", [])]
    assert pieces[0]["name"] == call["function"]["name"]
    assert "".join(piece["arguments"] for piece in pieces) == call["function"]["arguments"]


def test_a_call_and_its_result_go_back_to_the_model(model: LocalModel) -> None:
    fields = {"tools": [WEATHER, BELL], "seed": 2, **WILD}
    message = model.post(CHAT, messages=ASK, tool_choice="required", parallel_tool_calls=False, **fields)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": '{"sky": "grey"}'}
    answer = model.post(CHAT, messages=[*ASK, message, result], **{**fields, "max_tokens": 12})
    rendered = model.post("/detokenize", tokens=model.post("/tokenize", messages=[*ASK, message, result])["tokens"])["prompt"]
    assert f'<call>{{"name": "{message["tool_calls"][0]["function"]["name"]}"' in rendered and '{"sky": "grey"}' in rendered
    assert answer["usage"]["completion_tokens"] <= 12
    assert answer["choices"][0]["message"]["content"] or answer["choices"][0]["message"]["tool_calls"]


def test_auto_may_answer_and_none_is_as_without_tools(model: LocalModel) -> None:
    fields = {"messages": ASK, "seed": 3, **WILD, "max_tokens": 20}
    free = model.post(CHAT, **fields, tools=[WEATHER], tool_choice="auto")["choices"][0]["message"]
    assert bool(free["content"]) != bool(free["tool_calls"])
    plain = model.post(CHAT, **fields)["choices"][0]["message"]["content"]
    assert model.post(CHAT, **fields, tools=[WEATHER], tool_choice="none")["choices"][0]["message"]["content"] == plain


def test_tools_and_a_form_give_a_call_or_the_form_whole_and_streamed(model: LocalModel) -> None:
    holds_call = format_of(
        {"type": "array", "items": {"const": '<call>{"name": "weather", "arguments": {}}</call>'}, "minItems": 1, "maxItems": 1}
    )
    kinds = set()
    for seed, form in itertools.product(range(2), (format_of(THIEF), holds_call)):
        fields = {"messages": ASK, "tools": [WEATHER, BELL], "response_format": form, "seed": seed, "parallel_tool_calls": False, **WILD}
        answer = model.post(CHAT, **fields)["choices"][0]
        deltas = [choice["delta"] for chunk in model.stream(CHAT, **fields) for choice in chunk["choices"]]
        content = "".join(delta.get("content") or "" for delta in deltas) or None
        assert content == answer["message"]["content"]
        if calls := answer["message"]["tool_calls"]:
            assert content is None and answer["finish_reason"] == "tool_calls" and calls[0]["function"]["name"] in ("weather", "ring_bell")
            assert sum(len(delta.get("tool_calls") or ()) > 0 for delta in deltas) > 0
        else:
            jsonschema.validate(json.loads(content or ""), form["json_schema"]["schema"])
            assert answer["finish_reason"] == "stop"
        kinds.add(bool(calls))
    assert kinds == {True, False}
    forced = model.post(CHAT, messages=ASK, tools=[WEATHER], tool_choice="required", response_format=format_of(THIEF), seed=1, **WILD)
    assert forced["choices"][0]["message"]["tool_calls"]


@pytest.mark.parametrize("drafts", [False, True])
def test_letters_of_several_bytes_are_streamed_whole(model: LocalModel, drafts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine.drafter, "is_on", drafts)
    fields = {"messages": ASK, "response_format": format_of({"const": LETTERS}), **WILD}
    with free_rows():
        whole = model.post(CHAT, **fields)["choices"][0]["message"]["content"]
        pieces = content_of(model.stream(CHAT, **fields))
    assert json.loads(whole) == LETTERS
    assert "".join(pieces) == whole and not any("\ufffd" in piece for piece in pieces)
    assert (len([piece for piece in pieces if piece]) >= len(LETTERS)) is not drafts


@pytest.mark.parametrize("stop", ["猫", "😀 na", "ï"])
def test_a_stop_string_of_several_bytes(model: LocalModel, stop: str) -> None:
    fields = {"messages": ASK, "response_format": format_of({"const": LETTERS}), "stop": stop, **WILD}
    choice = model.post(CHAT, **fields)["choices"][0]
    expected = f'"{LETTERS}"'.split(stop)[0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    assert "".join(content_of(model.stream(CHAT, **fields))) == expected


def test_a_schema_that_cannot_be_enforced_is_refused(model: LocalModel) -> None:
    error = model.refused(CHAT, messages=ASK, response_format=format_of({"type": "string", "format": "no-such-format"}))
    assert error["code"] == "unsupported_schema" and "no-such-format" in error["message"]
