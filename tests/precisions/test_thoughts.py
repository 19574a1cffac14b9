"""The limit of a thought's tokens in every precision, by a template that opens the thought as DeepSeek-R1's does."""

import json
from typing import Any

import pytest
from inprocess import CHAT, LocalModel
from precisions.conftest import MARK, PRECISIONS

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Who stole the cheese?"}], "temperature": 1.5, "top_p": 1, "min_p": 0}
PLACE = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 8}}, "required": ["place"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": PLACE}}


def thought_tokens(choice: dict[str, Any]) -> int:
    """The tokens before the mark that closes the thought."""
    pieces = [bytes(entry["bytes"]) for entry in choice["logprobs"]["reasoning_content"]]
    end = b"".join(pieces).index(MARK.encode())
    return sum(len(b"".join(pieces[: index + 1])) <= end for index in range(len(pieces)))


@pytest.mark.parametrize(
    ("model", "limit"), [*(("float32", limit) for limit in (0, 1, 5, 50)), *((name, 2) for name in PRECISIONS)], indirect=["model"]
)
def test_a_thought_has_at_most_its_tokens_and_the_answer_follows(thinking: LocalModel, limit: int) -> None:
    answer = thinking.post(CHAT, **ASK, max_tokens=limit + 20, ignore_eos=True, n=4, seed=1, thinking_token_budget=limit, logprobs=True)
    counts = [thought_tokens(choice) for choice in answer["choices"]]
    assert max(counts) <= limit and any(count > limit - 4 for count in counts), "a thought may end up to three tokens earlier"
    assert all(choice["message"]["content"] for choice in answer["choices"])
    used = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert used == sum(len(choice["logprobs"]["reasoning_content"]) for choice in answer["choices"])


def test_a_limited_thought_is_the_same_whole_and_streamed(thinking: LocalModel) -> None:
    fields = {**ASK, "max_tokens": 60, "ignore_eos": True, "seed": 4, "thinking_token_budget": 5}
    whole = thinking.post(CHAT, **fields)["choices"][0]["message"]
    deltas = [choice["delta"] for chunk in thinking.stream(CHAT, **fields) for choice in chunk["choices"]]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == whole[name]


@pytest.mark.parametrize(("model", "limit"), [("float32", 0), ("float32", 20), *((name, 2) for name in PRECISIONS)], indirect=["model"])
def test_a_form_and_a_forced_call_follow_the_limited_thought(thinking: LocalModel, limit: int) -> None:
    fields = {**ASK, "max_tokens": 100, "thinking_token_budget": limit}
    for seed in range(2):
        choice = thinking.post(CHAT, **fields, seed=seed, response_format=FORM)["choices"][0]
        assert isinstance(json.loads(choice["message"]["content"])["place"], str)
        choice = thinking.post(CHAT, **fields, seed=seed, grammar='start: "it is " ("so" | "not so") "."')["choices"][0]
        assert choice["message"]["content"] in {"it is so.", "it is not so."} and choice["finish_reason"] == "stop"
        choice = thinking.post(CHAT, **fields, seed=seed, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and isinstance(json.loads(call["function"]["arguments"])["place"], str)
